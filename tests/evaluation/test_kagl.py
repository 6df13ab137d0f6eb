from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalign.artifacts import read_json
from catalign.config import StageConfig, config_folder
from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.kagl import QRELS, WORDS, _protocol, kagl, published_searches, read_qrels
from catalign.retrieval.metrics import judge, ranked, recall


def write(path: Path, rows: list[tuple[str, str, int | str, int]], columns=("task", "query", "id", "relevance")) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)}), path)
    return str(path)


@pytest.fixture
def toy(tmp_path, catalogue, context, words):
    """Four products whose photos and titles are chosen vectors, and two queries of each of two tasks."""
    titles = ["red shoe", "blue shoe", "red hat", "green hat"]
    image = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]])
    text = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    rows = [("text-to-image", "red shoe", "p0", 1), ("text-to-image", "blue shoe", "p1", 1)]
    rows += [("category-to-product", "shoe", "p0", 1), ("category-to-product", "shoe", "p1", 1)]
    rows += [("category-to-product", "hat", "p2", 1), ("category-to-product", "hat", "p3", 1)]
    queries = {"red shoe": [1, 0, 0], "blue shoe": [1, 0, 0], "shoe": [1, 0, 0], "hat": [0, 0, 1]}

    def run(extra=(), kept=titles, **options):
        path = write(tmp_path / "qrels.parquet", [*rows, *extra])
        found = context(catalogue(kept), {"image": image, "text": text}, name="ours", embedder=words(queries))
        return kagl(found, qrels=path, **options)

    return run


def test_hand_computed(toy):
    (published,) = toy(documents=["published"])
    metrics = {key: values[0] for key, values in published.metrics.items()}
    # Photos by similarity to [1, 0, 0]: p0 1, p1 .8, then p2 and p3 at 0.
    assert metrics["text-to-image/recall@1"] == 0.5
    assert metrics["text-to-image/recall@10"] == 1.0
    assert metrics["text-to-image/precision@10"] == pytest.approx(0.1)
    assert metrics["text-to-image/mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["text-to-image/avg_recall"] == pytest.approx(0.75)
    # .9 photo + .1 title: "shoe" ranks p0, p1; "hat" [0, 0, 1] ranks p3 (.9), p0 (.1), then p1 and p2.
    assert metrics["category-to-product/recall@1"] == pytest.approx((0.5 + 0.5) / 2)
    assert metrics["category-to-product/precision@1"] == 1.0
    assert metrics["category-to-product/mrr"] == 1.0
    assert metrics["category-to-product/avg_precision"] == pytest.approx((1 + 0.2) / 2)


def test_published_documents_are_the_published_sum(toy, tmp_path, catalogue, context, words):
    image, text = np.array([[1, 0.0], [0.8, 0.6]]), np.array([[-1, 0.0], [0, -1.0]])
    path = write(tmp_path / "q.parquet", [("color-to-product", "x", "p0", 1), ("color-to-product", "y", "p1", 1)])
    # normalised(.9 image + .1 title) is [1, 0] and about [.823, .568]; the other weights would turn them around.
    queries = {"x": [1, 0], "y": [0.6, 0.8]}
    found = context(catalogue(["a", "b"]), {"image": image, "text": text}, embedder=words(queries))
    (published,) = kagl(found, qrels=path, documents=["published"])
    assert published.metrics["color-to-product/recall@1"] == [1.0]
    (title,) = kagl(found, qrels=path, documents=["text"])
    assert title.metrics["color-to-product/recall@1"] == [0.0]


def test_rows_are_protocols_of_their_own(toy):
    results = toy()
    assert [result.row for result in results] == ["ours", "ours-text", "ours-image", "ours-fused"]
    assert len({result.protocol["id"] for result in results}) == 4
    assert results[0].protocol["name"] == "kagl-published"
    assert "text-to-image/recall@10" in results[2].metrics
    for result in (results[1], results[3]):
        assert "title-to-product/recall@10" in result.metrics
        assert not any(key.startswith("text-to-image") for key in result.metrics)


def test_a_missing_product_still_counts_as_relevant(toy):
    (published,) = toy(extra=[("text-to-image", "red shoe", "gone", 1)], documents=["published"])
    assert published.metrics["text-to-image/recall@10"] == [pytest.approx((0.5 + 1) / 2)]
    assert published.details["products_missing"] == 1
    assert "the 4 products" in published.protocol["gallery"]


def test_only_named_products_are_in_the_gallery(tmp_path, catalogue, context, words):
    path = write(tmp_path / "q.parquet", [("text-to-image", "a", "p1", 1)])
    eye = np.array([[1, 0.0], [0.6, 0.8]])
    found = context(catalogue(["a", "b"]), {"image": eye, "text": eye}, embedder=words({"a": [1, 0]}))
    assert kagl(found, qrels=path)[0].metrics["text-to-image/recall@1"] == [1.0]


def test_relevance_zero_is_not_relevant(toy):
    (published,) = toy(extra=[("text-to-image", "blue shoe", "p0", 0)], documents=["published"])
    assert published.metrics["text-to-image/recall@1"] == [0.5]


def test_perfect_embedding_is_one_and_untrained_is_near_chance(tmp_path, catalogue, context, words, unit_rows):
    rng = np.random.default_rng(0)
    count, classes = 400, 8
    kinds = np.arange(count) % classes
    kind_vectors, own = np.eye(classes), unit_rows(rng.normal(size=(count, 64)))
    image = unit_rows(np.hstack([kind_vectors[kinds], own]))
    rows = [("text-to-image", f"title {i}", f"p{i}", 1) for i in range(count)]
    rows += [(task, f"kind {kinds[i]}", f"p{i}", 1) for i in range(count) for task in WORDS]
    queries = {f"title {i}": image[i] for i in range(count)}
    queries |= {f"kind {k}": np.hstack([kind_vectors[k], np.zeros(64)]) for k in range(classes)}
    noise = {text: unit_rows(rng.normal(size=(1, 72)))[0] for text in queries}
    other = {name: unit_rows(rng.normal(size=(count, 72))) for name in ("image", "text")}
    found = context(
        catalogue([f"title {i}" for i in range(count)]),
        {"image": image, "text": image},
        other,
        embedder=words(queries),
        untrained_embedder=words(noise),
    )
    published = kagl(found, qrels=write(tmp_path / "q.parquet", rows), documents=["published"])[0]
    for task in ("text-to-image", *WORDS):
        assert published.metrics[f"{task}/mrr"] == [1.0]
    assert published.metrics["text-to-image/recall@1"] == [1.0]
    assert published.metrics["category-to-product/precision@10"] == [1.0]
    chance = published.baselines["random"]
    assert chance["text-to-image/recall@10"] == [pytest.approx(10 / count)]
    assert chance["category-to-product/precision@10"] == [pytest.approx(1 / classes)]
    assert abs(published.baselines["untrained"]["text-to-image/recall@10"][0] - 10 / count) < 0.03


def test_word_match_baseline_is_for_words_only(toy):
    tfidf = toy(documents=["published"])[0].baselines["tfidf"]
    assert tfidf["category-to-product/recall@10"] == [1.0]
    assert tfidf["category-to-product/precision@1"] == [1.0]
    assert not any(key.startswith("text-to-image") for key in tfidf)


def test_skipped_says_what_it_needs(catalogue, context, words, tmp_path):
    eye = {"image": np.eye(2), "text": np.eye(2)}
    run = SimpleNamespace(config=SimpleNamespace(name="x", data=SimpleNamespace(root=str(tmp_path))))
    with pytest.raises(Skipped, match=QRELS.name):
        kagl(context(catalogue(["a", "b"]), eye, embedder=words({}), run=run))
    with pytest.raises(Skipped, match=r"data\.root is not set"):
        kagl(context(catalogue(["a", "b"]), eye, embedder=words({})))
    with pytest.raises(Skipped, match="needs image embeddings"):
        kagl(context(catalogue(["a", "b"]), {"text": np.eye(2)}, embedder=words({})))
    other = write(tmp_path / "q.parquet", [("text-to-image", "a", "elsewhere", 1)])
    with pytest.raises(Skipped, match="none of the 1 products"):
        kagl(context(catalogue(["a", "b"]), eye, embedder=words({})), qrels=other)


def test_a_file_without_its_columns(tmp_path):
    path = tmp_path / "q.parquet"
    write(path, [("text-to-image", "a", "p1", 1)], columns=("task", "query", "product", "relevance"))
    with pytest.raises(CatalignError, match="has no column id"):
        read_qrels(path, ["p1"])


def test_the_file_is_found_under_the_data_root(tmp_path, catalogue, context, words):
    write(tmp_path / QRELS, [("text-to-image", "a", "p0", 1)])
    stage = StageConfig(objectives={"it": {"name": "contrastive"}})
    config = SimpleNamespace(name="x", data=SimpleNamespace(root=str(tmp_path)), stages={"align": stage})
    run = SimpleNamespace(config=config)
    eye = {"image": np.eye(2), "text": np.eye(2)}
    found = context(catalogue(["a", "b"], ["test", "train"]), eye, embedder=words({"a": [1, 0]}), run=run)
    result = kagl(found)[0]
    assert result.metrics["text-to-image/recall@1"] == [1.0]
    assert result.details["training"] == "KAGL train split (1 products)"


def test_published_searches_are_what_is_measured(tmp_path, catalogue, context, words, unit_rows):
    rng = np.random.default_rng(0)
    image, text = (unit_rows(rng.normal(size=(60, 8))) for _ in range(2))
    rows = [("text-to-image", f"t{i}", f"p{i}", 1) for i in range(40)]
    rows += [("color-to-product", f"c{i % 3}", f"p{i}", 1) for i in range(50)]
    queries = {query: unit_rows(rng.normal(size=(1, 8)))[0] for _, query, _, _ in rows}
    found = context(catalogue(["a"] * 60), {"image": image, "text": text}, embedder=words(queries))
    path = write(tmp_path / "q.parquet", rows)
    (published,) = kagl(found, qrels=path, documents=["published"])
    for search in published_searches(found, path):
        judged = judge(search.rows[ranked(search.queries, search.documents, 10)[0]], search.task.relevant)
        expected = published.metrics[f"{search.task.name}/recall@10"]
        assert [recall(judged, search.task.relevant, 10).mean()] == expected
    with pytest.raises(Skipped, match=r"data\.root is not set"):
        published_searches(found)


@pytest.mark.skipif("CATALIGN_DATA" not in os.environ, reason="needs CATALIGN_DATA")
def test_committed_published_rows_are_of_this_protocol():
    root = Path(os.environ["CATALIGN_DATA"]) / "fashion-products"
    ids = [str(value) for value in pq.read_table(root / "products.parquet", columns=["id"])["id"].to_pylist()]
    tasks, gallery, record = read_qrels(root / QRELS.name, ids)
    assert len(gallery) == 44_434
    assert [len(task.queries) for task in tasks] == [2000, 7, 45, 142, 46, 4, 8]
    committed = read_json(config_folder().parent / "benchmarks" / "kagl" / "published.json")
    assert committed["protocol"] == _protocol("published", record)["id"]
