from __future__ import annotations

import numpy as np
import pytest

from catalign.data.interactions import Cases
from catalign.data.ragged import Ragged
from catalign.evaluation.target_metrics import Trial, random_rank_metrics, rank_metrics
from catalign.retrieval import metrics
from catalign.retrieval.targets import Fixed

KS = (1, 3, 5)


def test_metrics_are_those_of_retrieval_with_one_relevant_product():
    rng = np.random.default_rng(0)
    ranking = np.argsort(rng.random((40, 9)), axis=1)
    relevant = [np.array([product]) for product in rng.integers(0, 9, 40)]
    judged = metrics.judge(ranking, relevant)
    ranks = 1.0 + judged.argmax(axis=1)
    found = rank_metrics(ranks, KS)
    for k in KS:
        assert found[f"hr@{k}"] == pytest.approx(metrics.hit(judged, k).mean())
        assert found[f"ndcg@{k}"] == pytest.approx(metrics.ndcg(judged, relevant, k).mean())
        assert found[f"mrr@{k}"] == pytest.approx(metrics.reciprocal_rank(judged, k).mean())
    assert found["mrr"] == pytest.approx(metrics.reciprocal_rank(judged).mean())


def test_a_perfect_recommender_scores_1_and_a_target_never_found_0():
    assert set(rank_metrics(np.ones(4), KS).values()) == {1.0}
    assert set(rank_metrics(np.full(4, np.inf), KS).values()) == {0.0}
    assert rank_metrics(np.array([1.0, np.inf]), KS)["mrr"] == 0.5


def test_random_is_the_mean_over_all_ranks():
    sizes = np.array([2, 7, 7, 12])
    expected = [rank_metrics(np.arange(1.0, size + 1), KS) for size in sizes]
    for key, value in random_rank_metrics(sizes, KS).items():
        assert value == pytest.approx(np.mean([metrics[key] for metrics in expected])), key


def trial(**given) -> Trial:
    cases = Cases(np.arange(3), Ragged.of([[0, 1], [0, 3, 3], [5, 1]]), np.array([2, 3, 4]))
    groups = {"cold": np.array([True, False, True]), "head": np.zeros(3, bool)}
    usual = {"hidden": cases.contexts, "gallery": np.ones(6, bool), "negatives": None}
    return Trial("toy", cases, **{**usual, **given}, groups=groups, ks=KS)


def test_sizes_count_what_is_ranked():
    assert list(trial().sizes()) == [4, 5, 4]  # the second context holds its own target
    assert list(trial(hidden=None).sizes()) == [6, 6, 6]
    assert list(trial(gallery=np.arange(6) > 0).sizes()) == [4, 5, 3]
    assert list(trial(negatives=np.zeros((3, 2), int)).sizes()) == [3, 3, 3]


def test_groups_with_a_case_have_metrics_of_their_own():
    tried = trial()
    ranks = tried.ranks(Fixed(np.arange(6.0)))
    assert list(ranks) == [4, 3, 1]  # the first two contexts hide nothing that is better, the third hides product 5
    found = tried.metrics(ranks)
    assert found["toy/hr@3"] == pytest.approx(2 / 3)
    assert found["toy/cold/hr@3"] == 0.5
    assert not any("head" in key or "cold/mrr" in key for key in found)
    assert found.keys() == tried.random().keys()
