from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from catalign.data.ragged import Ragged
from catalign.errors import CatalignError
from catalign.retrieval import targets as module
from catalign.retrieval.targets import Fixed, Sparse, Vectors, target_ranks


def oracle(scores, targets, hidden=None, gallery=None, negatives=None):
    """Ranks by a stable sort of the whole matrix (Q, N)."""
    ranks = []
    for question, target in enumerate(targets):
        row = scores[question].copy()
        allowed = np.ones(len(row), bool) if gallery is None else gallery.copy()
        if hidden is not None:
            allowed[hidden[question]] = False
        if negatives is not None:
            allowed = np.isin(np.arange(len(row)), negatives[question])
        allowed[target] = True
        row[~allowed] = -np.inf
        order = np.argsort(-row, kind="stable")
        ranks.append(np.inf if np.isneginf(row[target]) else 1.0 + np.flatnonzero(order == target)[0])
    return np.array(ranks)


@st.composite
def trials(draw):
    """Vectors with many equal scores, some products hidden, some without a vector."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    questions, products, width = draw(st.integers(1, 9)), draw(st.integers(1, 30)), draw(st.integers(1, 5))
    kinds = rng.normal(size=(draw(st.integers(1, 6)), width)) / 3
    vectors = rng.normal(size=(questions, width)), kinds[rng.integers(0, len(kinds), products)]
    asked, found = (vector.astype(np.float32) for vector in vectors)
    given = {
        "hidden": Ragged.of([rng.integers(0, products, rng.integers(0, 6)) for _ in range(questions)]),
        "gallery": rng.random(products) < 0.8,
        "negatives": np.argsort(rng.random((questions, products)), axis=1)[:, : draw(st.integers(1, products))],
    }
    given = {name: value for name, value in given.items() if draw(st.booleans())}
    if "negatives" in given:
        given = {"negatives": given["negatives"]}
    return asked, found, rng.random(products) < 0.8, rng.integers(0, products, questions), given


@settings(max_examples=200, deadline=None)
@given(trials(), st.integers(1, 60))
def test_ranks_are_those_of_a_sort(trial, block):
    asked, found, present, wanted, given = trial
    # Pair by pair, as scores are defined: identical products then tie exactly.
    scores = np.array([[np.dot(q, p) for p in found.astype(float)] for q in asked.astype(float)])
    scores[:, ~present] = -np.inf
    old, module._SCORES = module._SCORES, block
    try:
        ranks = target_ranks(Vectors(asked, found, present), wanted, **given)
    finally:
        module._SCORES = old
    np.testing.assert_array_equal(ranks, oracle(scores, wanted, **given))


@settings(max_examples=100, deadline=None)
@given(trials())
def test_sparse_and_fixed_scores_rank_as_dense_ones(trial):
    asked, found, present, wanted, given = trial
    asked, found = np.rint(2 * asked), np.rint(2 * found)
    scores = np.where(present, asked @ found.T, -np.inf)
    sparse = Sparse(csr_matrix(asked), csr_matrix(found).T.tocsr(), present)
    np.testing.assert_array_equal(target_ranks(sparse, wanted, **given), oracle(scores, wanted, **given))
    fixed = np.tile(scores[:1], (len(asked), 1))
    np.testing.assert_array_equal(target_ranks(Fixed(scores[0]), wanted, **given), oracle(fixed, wanted, **given))


def test_what_float32_cannot_tell_apart_is_settled_in_float64():
    """Products that differ by less than float32 sums can show, and copies of them, among many others."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=512).astype(np.float32)
    close = np.tile(base, (40, 1))
    close[np.arange(40), rng.integers(0, 512, 40)] *= np.float32(1 + 2e-7)
    found = np.concatenate([close, close[::-1], rng.normal(size=(200, 512)).astype(np.float32)])
    asked = (base + rng.normal(size=(30, 512)) / 10).astype(np.float32)
    wanted = rng.integers(0, 80, 30)
    exact = np.array([[np.einsum("d,d->", q, p) for p in found.astype(float)] for q in asked.astype(float)])
    np.testing.assert_array_equal(target_ranks(Vectors(asked, found), wanted), oracle(exact, wanted))
    rough = oracle((asked @ found.T).astype(float), wanted)
    assert (rough != oracle(exact, wanted)).any()  # so the case is a hard one


def test_equal_scores_go_by_row():
    assert list(target_ranks(Fixed(np.zeros(5)), np.arange(5))) == [1, 2, 3, 4, 5]
    same = Vectors(np.ones((5, 3), np.float32), np.ones((5, 3), np.float32))
    assert list(target_ranks(same, np.arange(5))) == [1, 2, 3, 4, 5]


def test_hidden_products_are_passed_over_but_a_hidden_target_is_ranked():
    scores, hidden = Fixed(np.arange(5.0)[::-1]), Ragged.of([[0, 1, 1], [0, 2], []])
    assert list(target_ranks(scores, np.array([3, 2, 2]), hidden=hidden)) == [2, 2, 3]


def test_a_target_without_a_score_is_never_found():
    present = np.array([True, False, False])
    scorer = Vectors(np.ones((2, 2), np.float32), np.ones((3, 2), np.float32), present)
    for negatives in (None, np.array([[0, 2], [1, 2]])):
        assert list(target_ranks(scorer, np.array([1, 0]), negatives=negatives)) == [np.inf, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Vectors(np.ones((2, 3)), np.ones((2, 4))), "not of one width"),
        (lambda: Vectors(np.ones((2, 3)), np.array([[0, 1, 2], [0, np.nan, 0]])), "product 1 has values"),
        (lambda: target_ranks(Fixed(np.ones(3)), np.array([0, 3])), "target 3 is not a row of 3"),
        (lambda: target_ranks(Fixed(np.ones(3)), np.array([-1])), "target -1"),
        (lambda: target_ranks(Fixed(np.ones(3)), np.array([0, 1]), hidden=Ragged.of([[1]])), "hidden products of 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(CatalignError, match=message):
        call()
