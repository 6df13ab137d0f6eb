"""Metrics against hand-worked values, pytrec_eval and their own laws."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from catalign.errors import CatalignError
from catalign.retrieval import metrics
from catalign.retrieval.metrics import retrieval_metrics

KS = (1, 3, 10)


@st.composite
def tasks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Queries and a gallery with many tied scores, and graded relevant documents."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, size = draw(st.integers(1, 5)), draw(st.integers(2, 60))
    gallery = rng.integers(-2, 3, (size, 3)).astype(np.float32)
    queries = rng.integers(-2, 3, (count, 3)).astype(np.float32)
    relevant = [rng.permutation(size)[: rng.integers(1, min(size, 15) + 1)] for _ in range(count)]
    return queries, gallery, relevant, [rng.integers(1, 4, len(r)).astype(float) for r in relevant]


def trec(queries: np.ndarray, gallery: np.ndarray, relevant: list, grades: list) -> dict[str, dict[str, float]]:
    """trec_eval breaks ties by document id, descending; so ids descend with the row, as our rule wants."""
    name = [f"d{len(gallery) - row:06d}" for row in range(len(gallery))]
    run = {f"q{q}": {name[r]: float(s) for r, s in enumerate(gallery @ v)} for q, v in enumerate(queries)}
    qrels = {f"q{q}": {name[r]: int(g) for r, g in zip(*pair)} for q, pair in enumerate(zip(relevant, grades))}
    cuts = ",".join(map(str, KS))
    measures = {"map", "recip_rank", *(f"{m}.{cuts}" for m in ("ndcg_cut", "recall", "P", "success"))}
    return pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)


def mean(values: dict[str, dict[str, float]], key: str) -> float:
    return float(np.mean([v[key] for v in values.values()]))


@settings(max_examples=40, deadline=None)
@given(tasks())
def test_agrees_with_pytrec_eval(task: tuple) -> None:
    queries, gallery, relevant, grades = task
    ours = retrieval_metrics(queries, gallery, relevant, grades=grades, ks=KS, mrr_cut=len(gallery))
    theirs = trec(queries, gallery, relevant, grades)
    for name, key in (("recall", "recall"), ("precision", "P"), ("ndcg", "ndcg_cut"), ("hit", "success")):
        for k in KS:
            assert ours[f"{name}@{k}"] == pytest.approx(mean(theirs, f"{key}_{k}"), abs=1e-6), f"{name}@{k}"
    assert ours[f"mrr@{len(gallery)}"] == pytest.approx(mean(theirs, "recip_rank"), abs=1e-6)
    assert ours["map"] == pytest.approx(mean(theirs, "map"), abs=1e-6)
    exponential = trec(queries, gallery, relevant, [2**g - 1 for g in grades])
    for k in KS:
        assert ours[f"ndcg_exponential@{k}"] == pytest.approx(mean(exponential, f"ndcg_cut_{k}"), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(tasks())
def test_laws(task: tuple) -> None:
    queries, gallery, relevant, grades = task
    values = retrieval_metrics(queries, gallery, relevant, grades=grades, ks=KS)
    assert all(0 <= value <= 1 + 1e-12 for name, value in values.items() if name != "median_rank")
    assert 1 <= values["median_rank"] <= len(gallery)
    for low, high in pairwise(KS):
        assert values[f"recall@{low}"] <= values[f"recall@{high}"] <= values[f"hit@{high}"] + 1e-12
        assert values[f"hit@{low}"] <= values[f"hit@{high}"]
    shuffled = [np.argsort(-g, kind="stable")[::-1] for g in grades]
    again = retrieval_metrics(
        queries,
        gallery,
        [r[o] for r, o in zip(relevant, shuffled)],
        grades=[g[o] for g, o in zip(grades, shuffled)],
        ks=KS,
    )
    assert again == pytest.approx(values), "the order in which relevant documents are listed means nothing"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.integers(1, 15))
def test_a_perfect_ranking_scores_one(grades: list[int], k: int) -> None:
    best_first = np.array(sorted(grades, reverse=True), dtype=float)
    rows = np.arange(len(grades) + 4)
    judged = metrics.judge(rows[None], [rows[: len(grades)]], [best_first])
    for gains in ("linear", "exponential"):
        assert metrics.ndcg(judged, [rows[: len(grades)]], k, [best_first], gains)[0] == pytest.approx(1)
    assert metrics.average_precision([rows[: len(grades)] + 1])[0] == pytest.approx(1)
    assert metrics.reciprocal_rank(judged)[0] == 1
    assert metrics.recall(judged, [rows[: len(grades)]], k)[0] == pytest.approx(min(1, k / len(grades)))


def test_worked_example() -> None:
    ranking = np.array([[4, 0, 3, 1], [2, 1, 0, 3]])
    relevant, grades = [np.array([0, 1, 2]), np.array([4])], [np.array([3.0, 1.0, 2.0]), np.array([1.0])]
    judged = metrics.judge(ranking, relevant, grades)
    assert judged.tolist() == [[0, 3, 0, 1], [0, 0, 0, 0]]
    assert metrics.recall(judged, relevant, 2).tolist() == [1 / 3, 0]
    assert metrics.hit(judged, 2).tolist() == [1, 0]
    assert metrics.precision(judged, 4).tolist() == [0.5, 0]
    assert metrics.precision(judged, 8).tolist() == [0.25, 0], "precision divides by k, also beyond the gallery"
    assert metrics.reciprocal_rank(judged).tolist() == [0.5, 0]
    assert metrics.reciprocal_rank(judged, 1).tolist() == [0, 0]
    linear = (3 / np.log2(3) + 1 / np.log2(5)) / (3 + 2 / np.log2(3) + 1 / 2)
    exponential = (7 / np.log2(3) + 1 / np.log2(5)) / (7 + 3 / np.log2(3) + 1 / 2)
    assert metrics.ndcg(judged, relevant, 4, grades)[0] == pytest.approx(linear)
    assert metrics.ndcg(judged, relevant, 4, grades, "exponential")[0] == pytest.approx(exponential)
    assert metrics.average_precision([np.array([6, 2])]) == pytest.approx((1 / 2 + 2 / 6) / 2)
    assert metrics.best_rank([np.array([6, 2])]).tolist() == [2]


def test_undefined_metrics_are_errors() -> None:
    with pytest.raises(CatalignError, match="query 1 has no relevant document"):
        metrics.judge(np.array([[0], [0]]), [np.array([0]), np.array([], dtype=int)])
    with pytest.raises(CatalignError, match="query 0 lists the relevant document 3 twice"):
        metrics.judge(np.array([[0]]), [np.array([3, 3])])
    with pytest.raises(CatalignError, match="above 0"):
        metrics.judge(np.array([[0]]), [np.array([3])], [np.array([0.0])])
    with pytest.raises(CatalignError, match="did you mean 'linear'"):
        metrics.ndcg(np.array([[1.0]]), [np.array([0])], 1, gains="linaer")
