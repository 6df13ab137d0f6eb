from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.baselines import bm25
from catalign.evaluation.search_ranking import (
    QRELS,
    Grades,
    cross_validated,
    query_metrics,
    random_queries,
    read_grades,
    reciprocal_rank_fusion,
    search_ranking,
)

FILE = "query,docid,rating\nred shoe,p0,3\nred shoe,p1,1\nred shoe,p2,0\nhat,p3,2\nhat,p0,0\nnothing,p1,0\n"


class Knowing:
    """Embeds a text as the vector a test gave it; knows no other."""

    def __init__(self, vectors):
        self.vectors = vectors

    def knows(self, texts):
        return np.array([text in self.vectors for text in texts])

    def text(self, texts):
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


@pytest.fixture
def toy(tmp_path, catalogue, context, monkeypatch):
    monkeypatch.setattr("catalign.evaluation.significance.DRAWS", 99)
    titles = ["red shoe", "blue shoe", "red hat", "green cap"]
    vectors = {"red shoe": [1, 0, 0], "blue shoe": [0.8, 0.6, 0], "red hat": [0, 1, 0], "green cap": [0, 0.6, 0.8]}
    embedder = Knowing({**vectors, "hat": [0, 0.6, 0.8]})
    path = tmp_path / "qrels.csv"
    path.write_text(FILE)

    def run(**options):
        store = {"text": np.array([vectors[title] for title in titles])}
        found = context(catalogue(titles), store, name="ours", embedder=embedder)
        return search_ranking(found, **{"qrels": str(path), **options})

    return run


def random_grades(rng, queries: int, size: int) -> Grades:
    rows = [rng.permutation(size)[: rng.integers(3, size)] for _ in range(queries)]
    grades = [np.concatenate([[rng.integers(1, 4)], rng.integers(0, 4, len(row) - 1)]).astype(float) for row in rows]
    return Grades(["q"] * queries, rows, grades, {}, "")


@pytest.mark.parametrize("gallery", ["full", "judged"])
def test_ndcg_of_both_gains_is_scikit_learns(gallery):
    rng = np.random.default_rng(0)
    grades, scores = random_grades(rng, 20, 30), rng.random((20, 30))
    found = query_metrics(scores, grades, gallery)
    for query, (rows, given) in enumerate(zip(grades.rows, grades.grades, strict=True)):
        truth = np.zeros(30)
        truth[rows] = given
        kept = np.arange(30) if gallery == "full" else rows
        for name, gain in (("ndcg@10", truth), ("ndcg_exponential@10", 2**truth - 1)):
            expected = ndcg_score(gain[None, kept], scores[None, query, kept], k=10)
            assert found[name][query] == pytest.approx(expected)


def test_random_is_the_mean_over_all_orders():
    grades = Grades(["q"], [np.array([4, 0, 2])], [np.array([3.0, 0.0, 1.0])], {}, "")
    for gallery in ("full", "judged"):
        expected = random_queries(grades, 5, gallery)
        orders = np.array(list(permutations(range(5))), dtype=float)
        every = Grades(["q"] * len(orders), grades.rows * len(orders), grades.grades * len(orders), {}, "")
        for name, values in query_metrics(orders, every, gallery).items():
            assert expected[name] == pytest.approx([values.mean()]), name


def test_rank_fusion_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 8)), rng.random((3, 8))
    first[:, [1, 5]] = 0  # not found
    expected = np.zeros((3, 8))
    for query in range(3):
        for scores in (first[query], second[query]):
            for rank, row in enumerate(sorted(range(8), key=lambda row: (-scores[row], row)), start=1):
                expected[query, row] += 1 / (60 + rank) if scores[row] else 0
    assert reciprocal_rank_fusion(first, second) == pytest.approx(expected)


def test_bm25_finds_stems_and_nothing_without_words():
    scores = bm25(["black batteries", "red shoes", "a battery and a charger"], ["battery", "the", "zebra"])
    assert scores[0].argmax() == 0  # the shorter one
    assert scores[0, 1] == 0 < scores[0, 2]
    assert not scores[1:].any()


def test_rows_galleries_and_hand_computed_numbers(toy):
    results = {result.row: result for result in toy()}
    endings = ["", "-rrf", "-sum", "-tuned"]
    assert list(results) == [f"ours{gallery}{ending}" for gallery in ("", "-judged") for ending in endings]
    assert {result.protocol["name"] for result in results.values()} == {"search_ranking-full", "search_ranking-judged"}
    assert len({result.protocol["id"] for result in results.values()}) == 2
    ours = results["ours"]
    # "red shoe" finds p0, p1 (grades 3, 1): perfect. "hat" finds p3 (cosine 1) first.
    assert ours.metrics["ndcg@10"] == [1.0]
    assert ours.metrics["mrr@10"] == [1.0]
    assert ours.metrics["judged@10"] == [pytest.approx((3 / 4 + 2 / 4) / 2)]
    # BM25 finds "red hat" for "hat", which nobody graded, and p3 only after all that share its score of 0.
    assert ours.baselines["bm25"]["mrr@10"] == [pytest.approx((1 + 1 / 4) / 2)]
    assert ours.details["queries_left_out"] == 1
    assert "recall@100" not in results["ours-judged"].metrics


def test_every_row_is_tested_against_what_it_has_to_beat(toy):
    alone, fused, *_ = toy(galleries=["judged"])
    assert "ndcg@10/minus/bm25/p" in alone.significance["ours"]
    assert "ndcg@10/minus/encoder/p" not in alone.significance["ours"]
    assert "ndcg@10/minus/encoder/p" in fused.significance["ours"]
    difference = alone.metrics["mrr@10"][0] - alone.baselines["bm25"]["mrr@10"][0]
    assert alone.significance["ours"]["mrr@10/minus/bm25"] == [pytest.approx(difference)]
    assert alone.significance["bm25"]["ndcg@10/low"] <= alone.baselines["bm25"]["ndcg@10"]


def test_weight_of_the_sum_reaches_from_bm25_to_the_encoder(toy):
    for weight, other in ((0.0, "bm25"), (1.0, None)):
        alone, _, fused, _ = toy(galleries=["full"], weight=weight)
        expected = alone.metrics if other is None else alone.baselines[other]
        assert fused.metrics["ndcg@10"] == expected["ndcg@10"]
    assert toy(weight=0.4)[0].protocol["id"] != toy()[0].protocol["id"]


def test_other_queries_choose_the_tuned_weight(toy):
    found = toy(galleries=["full"])[-1]
    # "red shoe" is perfect with all weights, so that "hat" gets the first, 0; "hat" chooses the encoder for "red shoe"
    assert found.details["weights"] == [0.0, 0.8]
    assert "ndcg@10/minus/sum/p" in found.significance["ours"]
    assert found.metrics["mrr@10"] == found.baselines["bm25"]["mrr@10"]


def test_folds_choose_by_all_queries_but_their_own():
    good, bad = np.ones(10), np.zeros(10)
    good[:2], bad[:2] = 0, 10  # the first fold's own queries say otherwise, and outweigh the rest
    candidates = [{"ndcg": bad, "mrr": np.arange(10)}, {"ndcg": good, "mrr": -np.arange(10)}]
    found, chosen = cross_validated(candidates, "ndcg")
    assert chosen == [1, 0, 0, 0, 0]
    assert found["ndcg"].tolist() == [0.0] * 10
    assert found["mrr"].tolist() == [0, -1, 2, 3, 4, 5, 6, 7, 8, 9]
    alone, chosen = cross_validated([{"ndcg": np.zeros(1)}, {"ndcg": np.ones(1)}], "ndcg")
    assert chosen == [0]
    assert alone["ndcg"].tolist() == [0.0]


def test_a_product_the_catalogue_lacks_still_counts(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("query,docid,rating\nhat,p0,1\nhat,gone,3\n")
    grades = read_grades(path, ["p0", "p1"])
    assert grades.details["products_missing"] == 1
    found = query_metrics(np.array([[1.0, 0.0]]), grades, "judged")
    assert found["ndcg@10"] == pytest.approx([1 / (3 + 1 / np.log2(3))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("query,docid\nhat,p0\n", "no column rating"),
        ("query,docid,rating\nhat,p0,1\nhat,p1,good\n", "line 3: a rating"),
        ("query,docid,rating\nhat,p0,1\nhat,p0,2\n", "line 3: a product"),
    ],
)
def test_broken_files_are_refused_by_line(tmp_path, text, says):
    path = tmp_path / "q.csv"
    path.write_text(text)
    with pytest.raises(CatalignError, match=says):
        read_grades(path, ["p0", "p1"])


def test_skipped_says_what_it_needs(catalogue, context, tmp_path):
    found = context(catalogue(["a"]), {"text": np.eye(1)}, embedder=Knowing({}))
    with pytest.raises(Skipped, match=r"data\.root is not set"):
        search_ranking(found)
    with pytest.raises(Skipped, match="needs text embeddings"):
        search_ranking(context(catalogue(["a"]), {"image": np.eye(1)}))
    path = tmp_path / "q.csv"
    path.write_text("query,docid,rating\nhat,elsewhere,1\n")
    with pytest.raises(Skipped, match="none of the relevant products"):
        search_ranking(found, qrels=str(path))


@pytest.mark.skipif("CATALIGN_DATA" not in os.environ, reason="needs CATALIGN_DATA")
def test_the_public_file():
    import pyarrow.parquet as pq

    root = Path(os.environ["CATALIGN_DATA"])
    ids = pq.read_table(root / QRELS.parent / "products.parquet", columns=["id"])["id"].to_pylist()
    grades = read_grades(root / QRELS, ids)
    assert grades.details == {"queries": 116, "queries_left_out": 19, "grades": 3320, "products_missing": 0}
