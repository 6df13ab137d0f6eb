from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from catalign.retrieval.neighbours import nearest, threshold_at, votes


def unit(rng, count, width=6):
    rows = rng.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("form", [np.asarray, csr_matrix])
def test_nearest_are_nearest(form):
    rng = np.random.default_rng(0)
    bank, queries = unit(rng, 50), unit(rng, 9)
    distances, rows = nearest(form(bank), form(queries), 7, chunk=4)
    plain = np.linalg.norm(queries[:, None] - bank[None], axis=2)
    assert np.array_equal(rows, np.argsort(plain, axis=1)[:, :7])
    assert np.allclose(distances, np.sort(plain, axis=1)[:, :7], atol=1e-3)


def test_a_row_does_not_find_itself_even_among_many_equals():
    bank = np.ones((30, 3), dtype=np.float32)
    distances, rows = nearest(bank, bank, 4, exclude=np.arange(30))
    assert rows.shape == distances.shape == (30, 4)
    assert not (rows == np.arange(30)[:, None]).any()
    assert nearest(bank[:3], bank[:3], 20, exclude=np.arange(3))[1].shape == (3, 2)


def test_votes_are_shares_weighted_by_similarity():
    rng = np.random.default_rng(1)
    distances, labels = np.sort(rng.uniform(0, 1, (5, 4)), axis=1), rng.integers(0, 3, (5, 4))
    shares = votes(distances, labels, 3)
    for row in range(5):
        weights = np.exp((1 - distances[row] ** 2 / 2) / 0.1)
        expected = np.bincount(labels[row], weights, 3) / weights.sum()
        assert np.allclose(shares[row], expected)


ANSWERS = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=30)


@given(ANSWERS, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_threshold_at_is_what_a_loop_over_thresholds_finds(answers, precision):
    confidence, right = (np.array(column) for column in zip(*answers))
    expected = float("inf")
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        if right[confidence >= threshold].mean() >= precision:
            expected = threshold  # the lowest one wins, even after one that fell short
    assert threshold_at(confidence, right, precision) == expected


def test_no_answers_have_no_threshold():
    assert threshold_at(np.zeros(0), np.zeros(0, dtype=bool), 0.9) == float("inf")
