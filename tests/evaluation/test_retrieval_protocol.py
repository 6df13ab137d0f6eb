from __future__ import annotations

import numpy as np
import pytest

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.baselines import tfidf
from catalign.evaluation.retrieval import DIRECTIONS, GROUP, retrieval
from catalign.retrieval.metrics import retrieval_metrics


def plain(queries, gallery, relevant, exclude, k):
    """Every metric by its definition, one query at a time."""
    rows = []
    for number, query in enumerate(queries):
        scores = [(-float(np.dot(query.astype(float), item.astype(float))), row) for row, item in enumerate(gallery)]
        order = [row for _, row in sorted(scores) if exclude is None or row != exclude[number]]
        hits = [row in relevant[number] for row in order]
        ranks = [rank for rank, found in enumerate(hits, 1) if found]
        top, total = sum(hits[:k]), len(relevant[number])
        ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(total, k) + 1))
        rows.append(
            {
                f"recall@{k}": top / total,
                f"hit@{k}": float(top > 0),
                f"precision@{k}": top / k,
                f"ndcg@{k}": sum(1 / np.log2(rank + 1) for rank in ranks if rank <= k) / ideal,
                "mrr@10": 1 / ranks[0] if ranks[0] <= 10 else 0.0,
                "map": sum(place / rank for place, rank in enumerate(ranks, 1)) / total,
                "rank": ranks[0],
            }
        )
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "rank"}
    return {**means, "median_rank": float(np.median([row["rank"] for row in rows]))}


@pytest.fixture
def noisy(catalogue, context, unit_rows):
    rng = np.random.default_rng(3)
    count = 60
    groups = rng.integers(0, 35, count)
    centre = rng.normal(size=(35, 8))[groups]
    vectors = {name: unit_rows(centre + rng.normal(size=(count, 8))) for name in ("image", "text")}
    untrained = {name: unit_rows(rng.normal(size=(count, 8))) for name in ("image", "text")}
    titles = [f"brand{g % 5} model{g} item" for g in groups]
    splits = ["train" if row % 3 == 0 else "test" for row in range(count)]
    return context(catalogue(titles, splits, groups), vectors, untrained, name="ours")


@pytest.mark.parametrize("gallery", ["split", "all"])
def test_every_metric_agrees_with_its_definition(noisy, gallery):
    (result,) = retrieval(noisy, gallery=gallery, ks=[3])
    toy, rows = noisy.catalogue, noisy.catalogue.rows("test")
    pool = rows if gallery == "split" else np.arange(len(toy))
    tables = {name: noisy.store[name] for name in ("image", "text")} | {"fused": noisy.fused(noisy.store)[0]}
    for direction, (asked, documents) in DIRECTIONS.items():
        found, queries, itself = [], [], []
        for row in rows:
            same = [p for p, other in enumerate(pool) if toy.groups[other] == toy.groups[row]]
            if direction == GROUP:
                same = [p for p in same if pool[p] != row]
            if same:
                found.append(same)
                queries.append(row)
                itself.append(int(np.flatnonzero(pool == row)[0]))
        exclude = itself if direction == GROUP else None
        expected = plain(tables[asked][queries], tables[documents][pool], found, exclude, 3)
        for key, value in expected.items():
            assert result.metrics[f"{direction}/{key}"] == [pytest.approx(value)], f"{direction}/{key}"
        assert result.details[direction]["queries"] == len(queries)
        assert result.details[direction]["gallery"] == len(pool)


@pytest.mark.parametrize("exponential", [False, True])
def test_graded_ndcg_agrees_with_its_definition(noisy, exponential):
    toy, rows = noisy.catalogue, noisy.catalogue.rows("test")
    toy.attributes = {"kind": np.array([["shoe", "bag", ""][g % 3] for g in toy.groups])}
    (result,) = retrieval(noisy, directions=["text-to-image", GROUP], ks=[1, 4], related="kind")

    def gain(grade):
        return 2.0**grade - 1 if exponential else grade

    def grade(query, document):
        if toy.groups[query] == toy.groups[document]:
            return 2
        return int(toy.attributes["kind"][query] == toy.attributes["kind"][document] != "")

    def value(gains):
        return sum(g / np.log2(rank + 2) for rank, g in enumerate(gains[:4]))

    name = "graded_ndcg_exponential@4" if exponential else "graded_ndcg@4"
    tables = {name: noisy.store[name] for name in ("image", "text")} | {"fused": noisy.fused(noisy.store)[0]}
    for direction in ("text-to-image", GROUP):
        asked, documents = DIRECTIONS[direction]
        expected, chance = [], []
        for row in rows:
            pool = [p for p in rows if p != row or direction != GROUP]
            if not any(grade(row, p) == 2 for p in pool):
                continue
            order = sorted(pool, key=lambda p: (-float(tables[asked][row] @ tables[documents][p]), p))
            gains = [gain(grade(row, p)) for p in order]
            expected.append(value(gains) / value(sorted(gains, reverse=True)))
            chance.append(value([np.mean(gains)] * 4) / value(sorted(gains, reverse=True)))
        assert result.metrics[f"{direction}/{name}"] == [pytest.approx(np.mean(expected))]
        assert result.baselines["random"][f"{direction}/{name}"] == [pytest.approx(np.mean(chance))]


def test_an_unknown_related_attribute_names_the_nearest(noisy):
    noisy.catalogue.attributes = {"kind": np.array(["x"] * len(noisy.catalogue))}
    with pytest.raises(CatalignError, match="did you mean 'kind'"):
        retrieval(noisy, related="kinds")


def test_word_baseline_agrees_with_dense_vectors(noisy):
    (result,) = retrieval(noisy, directions=[GROUP])
    toy, rows = noisy.catalogue, noisy.catalogue.rows("test")
    (sparse,) = tfidf([toy.titles[row] for row in rows])
    dense = sparse.toarray()
    relevant = [
        [p for p in range(len(rows)) if p != q and toy.groups[rows[p]] == toy.groups[rows[q]]] for q in range(len(rows))
    ]
    chosen = np.array([q for q, same in enumerate(relevant) if same])
    wanted = [np.array(relevant[q]) for q in chosen]
    expected = retrieval_metrics(dense[chosen], dense, wanted, exclude=chosen)
    for key, value in expected.items():
        assert result.baselines["tfidf"][f"{GROUP}/{key}"] == [pytest.approx(value)], key


def test_perfect_embeddings_are_one_and_noise_is_near_random(catalogue, context, unit_rows):
    rng = np.random.default_rng(0)
    count, groups = 600, np.arange(600) // 2
    perfect = unit_rows(rng.normal(size=(300, 32)))[groups]
    noise = {name: unit_rows(rng.normal(size=(count, 32))) for name in ("image", "text")}
    found = context(catalogue(["x"] * count, groups=groups), {"image": perfect, "text": perfect}, noise)
    (result,) = retrieval(found)
    for direction in DIRECTIONS:
        assert result.metrics[f"{direction}/map"] == [1.0]
        assert result.metrics[f"{direction}/median_rank"] == [1.0]
        assert result.metrics[f"{direction}/recall@10"] == [1.0]
    for direction in ("text-to-image", "image-to-text", GROUP):
        for metric in ("recall@10", "hit@10", "precision@10", "mrr@10", "map", "ndcg@10"):
            key = f"{direction}/{metric}"
            assert result.baselines["untrained"][key][0] == pytest.approx(result.baselines["random"][key][0], abs=0.02)
    assert {"random", "untrained", "pixels", "tfidf"} == set(result.baselines)
    assert all(key.startswith(GROUP) for name in ("pixels", "tfidf") for key in result.baselines[name])


def test_raw_pixels_find_the_same_photo(catalogue, context):
    toy = catalogue(["a", "b", "c", "d"], groups=[0, 1, 0, 1])
    toy.images[2], toy.images[3] = toy.images[0], toy.images[1]
    (result,) = retrieval(context(toy, {"image": np.eye(4), "text": np.eye(4)}), directions=[GROUP])
    assert result.baselines["pixels"][f"{GROUP}/recall@1"] == [1.0]


def test_missing_modalities_are_left_out_and_counted(catalogue, context):
    eye = np.eye(4)
    toy = catalogue(
        list("abcd"), has_image=np.array([True, False, True, True]), has_text=np.array([True, True, True, False])
    )
    (result,) = retrieval(context(toy, {"image": eye, "text": eye}), directions=["text-to-image", "text-to-product"])
    assert result.details["text-to-image"] == {"queries": 2, "queries_left_out": 2, "gallery": 3, "gallery_left_out": 1}
    assert result.details["text-to-product"] == {
        "queries": 3,
        "queries_left_out": 1,
        "gallery": 4,
        "gallery_left_out": 0,
    }
    assert result.metrics["text-to-image/recall@1"] == [1.0]


def test_text_alone_has_no_cross_modal_direction(catalogue, context):
    found = context(catalogue(list("ab"), groups=[0, 0]), {"text": np.eye(2)})
    (result,) = retrieval(found)
    assert {key.split("/")[0] for key in result.metrics} == {"text-to-product", GROUP}


def test_nothing_to_do_is_skipped(catalogue, context):
    found = context(catalogue(list("ab")), {"image": np.eye(2), "text": np.eye(2)})
    with pytest.raises(Skipped, match="something relevant"):
        retrieval(found, directions=[GROUP])


def test_unknown_direction_names_the_nearest(noisy):
    with pytest.raises(CatalignError, match="did you mean 'text-to-image'"):
        retrieval(noisy, directions=["text-to-images"])


def test_drawn_queries_are_always_the_same(noisy):
    first, again = (retrieval(noisy, max_queries=9)[0] for _ in range(2))
    assert first.metrics == again.metrics
    assert first.details["text-to-image"]["queries"] == 9
    assert first.protocol["id"] != retrieval(noisy)[0].protocol["id"]


def test_choices_change_the_protocol(noisy):
    ids = {
        retrieval(noisy, **options)[0].protocol["id"]
        for options in ({}, {"gallery": "all"}, {"ks": [1]}, {"split": "train"})
    }
    assert len(ids) == 4
