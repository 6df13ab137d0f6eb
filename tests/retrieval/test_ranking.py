"""Rankings against a dense, stable argsort in exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalign.errors import CatalignError
from catalign.retrieval import ranking
from catalign.retrieval.ranking import ranked, relevant_ranks


def dense_order(queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    """The oracle: every score, sorted stably. Each distinct vector is scored alone, so that equal vectors tie."""
    scores = np.stack([gallery.astype(np.float64)[:, None, :] @ q.astype(np.float64)[:, None] for q in queries])[
        ..., 0, 0
    ]
    if exclude is not None:
        scores[np.arange(len(queries)), exclude] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")


def vectors(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    return rng.normal(size=(n, width)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 90), st.integers(1, 6), st.integers(1, 100))
def test_small_integers_tie_everywhere(seed: int, queries: int, gallery: int, width: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-1, 2, (queries, width)).astype(np.float32)
    g = rng.integers(-1, 2, (gallery, width)).astype(np.float32)
    rows, scores = ranked(q, g, k, chunk=3)
    order = dense_order(q, g)
    np.testing.assert_array_equal(rows, order[:, :k])
    np.testing.assert_array_equal(scores, np.take_along_axis(q @ g.T, rows, 1))
    wanted = [rng.permutation(gallery)[: rng.integers(1, gallery + 1)] for _ in range(queries)]
    for query, (ranks, relevant) in enumerate(zip(relevant_ranks(q, g, wanted, chunk=2), wanted, strict=True)):
        np.testing.assert_array_equal(order[query][ranks - 1], relevant)


@pytest.mark.parametrize("copies", [1, 3, 200])
def test_copies_of_vectors_come_in_row_order(copies: int) -> None:
    rng = np.random.default_rng(copies)
    gallery = np.concatenate([vectors(rng, 300, 48)] * copies)[: max(600, 300 * min(copies, 3))]
    if copies == 200:  # one title shared by hundreds of products: more ties than any margin holds
        gallery[50:450] = gallery[7]
    queries = np.concatenate([gallery[:5] + 0.01 * vectors(rng, 5, 48), gallery[7:8]])
    rows, _ = ranked(queries, gallery, 10)
    order = dense_order(queries, gallery)
    np.testing.assert_array_equal(rows, order[:, :10])
    if copies == 200:
        assert rows[-1].tolist() == [7, *range(50, 59)]
    everything = [np.arange(len(gallery))] * len(queries)
    for query, ranks in enumerate(relevant_ranks(queries, gallery, everything)):
        np.testing.assert_array_equal(order[query][ranks - 1], everything[0])
    few = [np.array([7, 60, 3])] * len(queries)
    for query, ranks in enumerate(relevant_ranks(queries, gallery, few)):
        np.testing.assert_array_equal(order[query][ranks - 1], few[0])


def test_collapsed_embeddings_are_ranked_beyond_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gallery = (1 + 3e-6 * vectors(rng, 500, 64)).astype(np.float32)
    queries = (1 + 3e-6 * vectors(rng, 9, 64)).astype(np.float32)
    passes = []
    whole = ranking._best_of_all
    monkeypatch.setattr(ranking, "_best_of_all", lambda *a: passes.append(len(a[0])) or whole(*a))
    rows, scores = ranked(queries, gallery, 5)
    np.testing.assert_array_equal(rows, dense_order(queries, gallery)[:, :5])
    assert passes == [9], "float32 cannot tell these apart, so every query needs the full pass"
    assert (np.diff(scores, axis=1) <= 0).all()


def test_result_does_not_depend_on_chunk_or_memory() -> None:
    rng = np.random.default_rng(1)
    gallery, queries = vectors(rng, 400, 16), vectors(rng, 30, 16)
    gallery[200:] = gallery[:200]
    one, many = ranked(queries, gallery, 7, chunk=1), ranked(queries, gallery, 7)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])


def test_exclude_leaves_the_query_out() -> None:
    rng = np.random.default_rng(2)
    gallery = vectors(rng, 80, 8)
    itself = np.arange(80)
    rows, _ = ranked(gallery, gallery, 100, exclude=itself)
    assert rows.shape == (80, 79)
    np.testing.assert_array_equal(rows, dense_order(gallery, gallery, itself)[:, :79])
    ranks = relevant_ranks(gallery, gallery, [rows[i, :3] for i in range(80)], exclude=itself)
    assert all(r.tolist() == [1, 2, 3] for r in ranks)
    some = np.where(itself % 2 == 0, itself, -1)
    rows, _ = ranked(gallery, gallery, 1, exclude=some)
    assert (rows[1::2, 0] == dense_order(gallery, gallery)[1::2, 0]).all()
    assert (rows[::2, 0] != itself[::2]).all()


def test_negative_zero_is_zero() -> None:
    gallery = np.array([[0.5, -0.0], [0.5, 0.0], [0.5, -0.0]], dtype=np.float32)
    rows, _ = ranked(np.ones((1, 2), np.float32), gallery, 3)
    assert rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "one width"),
        (np.ones((0, 3)), np.ones((2, 3)), "nothing to rank"),
        (np.ones((1, 3)), np.ones((0, 3)), "nothing to rank"),
        (np.ones((1, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]), "gallery vector 1"),
    ],
)
def test_unusable_input_is_named(queries: np.ndarray, gallery: np.ndarray, message: str) -> None:
    with pytest.raises(CatalignError, match=message):
        ranked(queries, gallery, 1)


def test_excluding_a_relevant_document_is_an_error() -> None:
    with pytest.raises(CatalignError, match="both relevant and excluded"):
        relevant_ranks(np.eye(2), np.eye(2), [np.array([0]), np.array([0])], exclude=np.array([0, 1]))
