"""KAGL: the public fashion retrieval benchmark, with published rows to stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from catalign.artifacts import digest
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion.weighted import PUBLISHED
from catalign.errors import CatalignError
from catalign.evaluation.base import TIES, Context, Result, Skipped, TextEmbedder, Vectors, protocol
from catalign.evaluation.baselines import random_metrics, tfidf, word_orders
from catalign.evaluation.inputs import data_file
from catalign.registry import register
from catalign.retrieval.metrics import judge, precision, ranked, recall, reciprocal_rank
from catalign.training.loaders import training_rows

TITLES = "text-to-image"
WORDS = tuple(
    f"{name}-to-product" for name in ("category", "sub-category", "fine-category", "color", "season", "usage")
)
KS, CUT = (1, 10), 10
QRELS = Path("fashion-products") / "kagl_qrels.parquet"
DOCUMENTS = {
    "published": "photos for text-to-image, else normalised(0.9 image + 0.1 title)",
    "text": "titles",
    "image": "photos",
    "fused": "products, by the run's own fusion",
}
Documents = Literal["published", "text", "image", "fused"]


@dataclass
class Task:
    """Queries and the catalogue rows relevant to each; a product the catalogue lacks has a row beyond its end."""

    name: str
    queries: list[str]
    relevant: list[np.ndarray]


class Search(NamedTuple):
    """A task as vectors, ready to rank.

    Attributes:
        task: The task.
        queries: (Q, D) vectors.
        documents: (G, D) vectors, in catalogue order.
        rows: (G,) catalogue rows of the documents, ascending.
    """

    task: Task
    queries: np.ndarray
    documents: np.ndarray
    rows: np.ndarray


Embedded = tuple[EmbeddingStore, TextEmbedder]
"""Products as vectors, and what embeds queries among them."""


@register("protocol", "kagl")
def kagl(context: Context, *, qrels: str | None = None, documents: list[Documents] | None = None) -> list[Result]:
    """Text queries against the photos and products of a fashion catalogue, as Marqo published it.

    Reference: github.com/marqo-ai/marqo-FashionCLIP (eval.py, configs/KAGL.json, data/KAGL; Apache-2.0).

    Data: the relevance file ``<data.root>/fashion-products/kagl_qrels.parquet`` (task, query, id, relevance), 2,774
    pairs of text-to-image and one pair per product and attribute of the six others. Gallery: all products that it
    names (44,434). A product missing from the catalogue, or without the documents' modality, is never retrieved but
    still counts as relevant.

    Tasks: text-to-image, 2,000 titles against photos; category-, sub-category-, fine-category-, color-, season- and
    usage-to-product, where the query is the bare word and a document is normalised(0.9 image + 0.1 title).

    Metrics, keyed ``<task>/<metric>`` and averaged over the task's queries: ``recall@1``, ``recall@10`` (relevant
    products in the top k over all relevant ones), ``precision@1``, ``precision@10``, ``mrr`` (1 over the rank of the
    first relevant product, 0 beyond 10), ``avg_recall`` and ``avg_precision`` (the mean of @1 and @10). Equal scores
    are ranked in catalogue order.

    Rows: the published protocol; and, as protocols of their own, the same queries where every document is the title
    (text), the photo (image) or the run's fused vector (fused). There the title queries are called title-to-product
    unless documents are photos, because a document that holds its own title is an easier target.

    Baselines: ``random`` (expected), ``untrained`` (the same model before training, fused by the published weights),
    ``tfidf`` (the word against titles; not where titles meet photos).

    Args:
        context: What is measured.
        qrels: The relevance file, if elsewhere.
        documents: Which rows to compute; null for all that the run's embeddings allow.

    Raises:
        Skipped: No relevance file, no text or image embeddings, or none of its products in the catalogue.
    """
    model = _embedded(context)
    tasks, gallery, record = read_qrels(_path(context, qrels), context.catalogue.ids)
    kinds: Sequence[str] = documents or [kind for kind in DOCUMENTS if kind != "fused" or context.fusion is not None]
    own = _measure(model, context, tasks, gallery, kinds)
    beside, embedder = {}, context.untrained_queries()
    if context.untrained is not None and embedder is not None:
        beside = _measure((context.untrained, embedder), context, tasks, gallery, kinds)
    words = _word_match(context, tasks, gallery)
    results = []
    for kind in kinds:
        baselines = {"random": _random(tasks, kind, len(gallery))}
        baselines |= {"untrained": beside[kind]} if beside else {}
        baselines |= {"tfidf": words} if words else {}
        row = context.name if kind == "published" else f"{context.name}-{kind}"
        details = {**record["details"], **_training(context)}
        results.append(Result("kagl", row, _protocol(kind, record), own[kind], baselines, details))
    return results


def published_searches(context: Context, qrels: str | None = None) -> Iterator[Search]:
    """What the published protocol ranks, task by task, for whoever shows rankings instead of counting them.

    Raises:
        Skipped: As :func:`kagl`.
    """
    model = _embedded(context)
    tasks, gallery, _ = read_qrels(_path(context, qrels), context.catalogue.ids)
    return (search for _, search in _searches(model, context, tasks, gallery, ["published"]))


def _embedded(context: Context) -> Embedded:
    for name in PUBLISHED:
        if name not in context.store.names:
            raise Skipped(f"kagl needs {name} embeddings and this run has none", "train an alignment of text and image")
    if context.embedder is None:
        raise Skipped("kagl needs an embedder for its text queries")
    return context.store, context.embedder


def _protocol(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    return protocol(
        "kagl",
        kind,
        qrels=record["digest"],
        tasks=record["tasks"],
        gallery=f"the {record['gallery']} products named in the qrels",
        queries="the bare title or word",
        documents=DOCUMENTS[kind],
        ties=TIES,
        ks=list(KS),
        mrr_cut=CUT,
        recall="relevant found in the top k over all relevant",
    )


def _training(context: Context) -> dict[str, Any]:
    if context.config is None:
        return {}
    used = {}
    for name, stage in context.config.stages.items():
        products = len(training_rows(context.catalogue, stage))
        used[name] = f"{'+'.join(stage.split)} split ({products:,} products)"
    if len(set(used.values())) == 1:
        return {"training": f"KAGL {next(iter(used.values()))}"}
    return {"training": "KAGL " + ", ".join(f"{name}: {products}" for name, products in used.items())}


def _path(context: Context, qrels: str | None) -> Path:
    remedy = (
        "columns task, query, id, relevance; made from data/KAGL/gt_query_doc of github.com/marqo-ai/marqo-FashionCLIP"
    )
    return data_file(context, "kagl.qrels", qrels, QRELS, remedy)


def read_qrels(path: Path, ids: list[str]) -> tuple[list[Task], np.ndarray, dict[str, Any]]:
    """Read a relevance file against a catalogue.

    Args:
        path: Parquet with columns task, query, id, relevance; relevance 0 is dropped.
        ids: The catalogue's product ids, in row order.

    Returns:
        The tasks in published order; the gallery's catalogue rows, ascending; its digest, sizes and counts.

    Raises:
        CatalignError: A column is missing, or no row is of a known task.
        Skipped: None of its products is in the catalogue.
    """
    wanted = ["task", "query", "id", "relevance"]
    if missing := set(wanted) - set(pq.read_schema(path).names):
        raise CatalignError(f"{path} has no column {', '.join(sorted(missing))}", f"it needs {', '.join(wanted)}")
    columns = (column.to_pylist() for column in pq.read_table(path, columns=wanted).select(wanted).columns)
    named: dict[str, dict[str, set[str]]] = {task: {} for task in (TITLES, *WORDS)}
    for task, query, product, relevance in zip(*columns, strict=True):
        if relevance > 0 and task in named:
            named[task].setdefault(str(query), set()).add(str(product))
    found = {task: {q: sorted(p) for q, p in sorted(queries.items())} for task, queries in named.items() if queries}
    if not found:
        raise CatalignError(f"{path} has no relevant row of a task among {', '.join(named)}")
    row = {product: number for number, product in enumerate(ids)}
    tasks = [
        Task(
            name,
            list(queries),
            [np.array([row.setdefault(p, len(row)) for p in products]) for products in queries.values()],
        )
        for name, queries in found.items()
    ]
    products = np.unique(np.concatenate([rows for task in tasks for rows in task.relevant]))
    gallery = products[products < len(ids)]
    if not len(gallery):
        raise Skipped(f"none of the {len(products)} products in {path} is in this catalogue", "use data=fashion")
    counts = {
        "queries": {task.name: len(task.queries) for task in tasks},
        "products_missing": len(products) - len(gallery),
    }
    return tasks, gallery, {"digest": digest(found), "tasks": list(found), "gallery": len(gallery), "details": counts}


def _measure(
    model: Embedded, context: Context, tasks: list[Task], gallery: np.ndarray, kinds: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Metrics per kind of documents."""
    metrics: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for kind, search in _searches(model, context, tasks, gallery, kinds):
        ranking, _ = ranked(search.queries, search.documents, CUT)
        metrics[kind] |= _scores(_key(search.task, kind), search.rows[ranking], search.task.relevant)
    return metrics


def _searches(
    model: Embedded, context: Context, tasks: list[Task], gallery: np.ndarray, kinds: Sequence[str]
) -> Iterator[tuple[str, Search]]:
    """Every task with every kind of documents; the untrained store is always fused by the published weights."""
    store, embedder = model
    texts = sorted({query for task in tasks for query in task.queries})
    vectors = dict(zip(texts, np.asarray(embedder.text(texts)), strict=True))
    tables: dict[str, Vectors] = {
        name: (np.asarray(store[name]), np.asarray(store.present(name))) for name in PUBLISHED
    }
    tables["published"] = context.fused(store, own=False)
    tables["fused"] = context.fused(store) if store is context.store else tables["published"]
    for kind in kinds:
        for task in tasks:
            documents, present = tables["image" if (kind, task.name) == ("published", TITLES) else kind]
            rows = gallery[present[gallery]]
            asked = np.stack([vectors[query] for query in task.queries])
            if kind == "fused" and store is context.store:
                asked = context.queries("text", asked)
            yield kind, Search(task, asked, documents[rows], rows)


def _key(task: Task, kind: str) -> str:
    return "title-to-product" if task.name == TITLES and kind in ("text", "fused") else task.name


def _scores(task: str, ranking: np.ndarray, relevant: list[np.ndarray]) -> dict[str, float]:
    judged = judge(ranking, relevant)
    scores = {f"recall@{k}": float(recall(judged, relevant, k).mean()) for k in KS}
    scores |= {f"precision@{k}": float(precision(judged, k).mean()) for k in KS}
    return _averaged(task, {**scores, "mrr": float(reciprocal_rank(judged, CUT).mean())})


def _averaged(task: str, scores: dict[str, float]) -> dict[str, float]:
    for name in ("recall", "precision"):
        scores[f"avg_{name}"] = float(np.mean([scores[f"{name}@{k}"] for k in KS]))
    return {f"{task}/{key}": value for key, value in scores.items()}


def _random(tasks: list[Task], kind: str, gallery: int) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for task in tasks:
        expected = random_metrics(np.array([min(len(rows), gallery) for rows in task.relevant]), gallery, KS, CUT)
        kept = {
            key: value for key, value in expected.items() if key == "mrr" or key.startswith(("recall", "precision"))
        }
        metrics |= _averaged(_key(task, kind), kept)
    return metrics


def _word_match(context: Context, tasks: list[Task], gallery: np.ndarray) -> dict[str, float]:
    titles = context.catalogue.text(next(iter(context.catalogue.fields)))
    chosen = [task for task in tasks if task.name in WORDS]
    documents, *queries = tfidf([titles[row] for row in gallery], *(task.queries for task in chosen))
    metrics: dict[str, float] = {}
    for task, vectors in zip(chosen, queries, strict=True):
        ranking = np.concatenate([order[:, :CUT] for order in word_orders(vectors, documents)])
        metrics |= _scores(task.name, gallery[ranking], task.relevant)
    return metrics
