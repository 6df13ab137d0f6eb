"""Retrieval within and across modalities, on a split of the run's own catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from catalign.data.store import EmbeddingStore
from catalign.errors import unknown
from catalign.evaluation.base import TIES, Context, Result, Skipped, Vectors, data_of, protocol
from catalign.evaluation.baselines import centred, random_metrics, raw_pixels, tfidf, word_orders
from catalign.registry import register
from catalign.retrieval.metrics import (
    Gains,
    average_precision,
    hit,
    judge,
    ndcg,
    precision,
    ranked,
    recall,
    reciprocal_rank,
    retrieval_metrics,
)

DIRECTIONS = {
    "text-to-image": ("text", "image"),
    "image-to-text": ("image", "text"),
    "text-to-product": ("text", "fused"),
    "image-to-product": ("image", "fused"),
    "product-to-group": ("fused", "fused"),
}
GROUP = "product-to-group"


@dataclass
class Trial:
    """One direction: catalogue rows of queries and gallery, and the gallery positions that are relevant or related."""

    queries: np.ndarray
    gallery: np.ndarray
    relevant: list[np.ndarray]
    exclude: np.ndarray | None
    related: list[np.ndarray] | None = None


@register("protocol", "retrieval")
def retrieval(
    context: Context,
    *,
    split: str = "test",
    gallery: Literal["split", "all"] = "split",
    directions: list[str] | None = None,
    ks: list[int] = [1, 5, 10],  # noqa: B006 - a config's default, never changed
    mrr_cut: int = 10,
    max_queries: int | None = None,
    related: str | None = None,
) -> list[Result]:
    """Does one view of a product find the others?

    Data: the products of ``split``. Gallery: those of the split, or of the whole catalogue. Relevant: products of the
    query's group (the same product listed twice or more counts every time).

    Directions: text-to-image and image-to-text; text-to-product and image-to-product, where documents are fused
    vectors, the query's own among them; product-to-group, a fused vector against all others, itself excluded, for
    groups of two products or more. Products without the modality are left out, and queries that then have nothing
    relevant; both are counted in ``details``.

    Metrics, keyed ``<direction>/<metric>`` and averaged over queries: ``recall@k`` (relevant in the top k over all
    relevant), ``hit@k`` (at least one in the top k, as CLIP papers count), ``precision@k``, ``ndcg@k``, ``mrr@10``,
    ``map``, ``median_rank`` (of the first relevant product). With ``related``, also ``graded_ndcg@k`` at the largest k,
    where the same product has grade 2 and another with the same value of that attribute grade 1, with linear gains,
    and ``graded_ndcg_exponential@k`` with gains 2^g - 1. Equal scores are ranked in catalogue order.

    Baselines: ``random`` (expected), ``untrained`` (the same model before training, fused 0.9 image + 0.1 text),
    and for product-to-group ``pixels`` (photos averaged to 16 × 12, centred, cosine) and ``tfidf`` (titles). Groups
    join equal titles, so word match is strong there by construction.

    Args:
        context: What is measured.
        split: Where queries come from.
        gallery: ``split`` or ``all``.
        directions: Of the five above; null for all that the run's embeddings allow.
        ks: Cut-offs.
        mrr_cut: Cut of the reciprocal rank.
        max_queries: Draw at most so many queries per direction (always the same ones).
        related: An attribute that makes products related, for the graded metric.

    Raises:
        Skipped: The run's embeddings allow none of the directions.
    """
    for direction in directions or []:
        if direction not in DIRECTIONS:
            raise unknown("retrieval direction", direction, DIRECTIONS)
    if related is not None and related not in context.catalogue.attributes:
        raise unknown("attribute in evaluation.retrieval.related", related, context.catalogue.attributes)
    if not {"text", "image"} & set(context.store.modalities):
        raise Skipped("retrieval: the run embeds neither texts nor photos")
    tables = _tables(context, context.store)
    chosen = [d for d in directions or DIRECTIONS if set(DIRECTIONS[d]) <= set(tables)]
    rows = context.catalogue.rows(split)
    pool = rows if gallery == "split" else np.arange(len(context.catalogue))
    trials = {d: _trial(context, tables, d, (rows, pool), max_queries) for d in chosen}
    details = {d: _details(trial, len(rows), len(pool)) for d, trial in trials.items()}
    trials = {d: trial for d, trial in trials.items() if len(trial.queries)}
    if related is not None:
        for trial in trials.values():
            trial.related = _related(trial, np.asarray(context.catalogue.attributes[related]).astype(str))
    if not trials:
        raise Skipped("retrieval: no direction has embeddings on both sides and a query with something relevant")
    baselines = _baselines(context, trials, tuple(ks), mrr_cut)
    record = protocol(
        "retrieval",
        f"{split}-{gallery}" if gallery == "all" else split,
        data=data_of(context.catalogue),
        split=split,
        gallery=gallery,
        directions=list(trials),
        relevant="same group",
        ks=ks,
        mrr_cut=mrr_cut,
        max_queries=max_queries,
        related=related,
        ties=TIES,
    )
    metrics = _measure(trials, tables, tuple(ks), mrr_cut, context.queries)
    return [Result("retrieval", context.name, record, metrics, baselines, details)]


def _tables(context: Context, store: EmbeddingStore) -> dict[str, Vectors]:
    tables: dict[str, Vectors] = {name: (store[name], store.present(name)) for name in store.modalities}
    if context.fusion is not None:
        tables["fused"] = context.fused(store, own=store is context.store)
    return tables


def _trial(
    context: Context,
    tables: dict[str, Vectors],
    direction: str,
    rows: tuple[np.ndarray, np.ndarray],
    max_queries: int | None,
) -> Trial:
    asked, documents = DIRECTIONS[direction]
    split, pool = rows
    gallery = pool[tables[documents][1][pool]]
    queries = split[tables[asked][1][split]]
    found = same_group(context.catalogue.groups, queries, gallery)
    if direction == GROUP:
        found = [positions[gallery[positions] != query] for positions, query in zip(found, queries, strict=True)]
    kept = np.flatnonzero([len(positions) > 0 for positions in found])
    if max_queries is not None and len(kept) > max_queries:
        kept = np.sort(np.random.default_rng(0).choice(kept, max_queries, replace=False))
    queries = queries[kept]
    exclude = np.searchsorted(gallery, queries) if direction == GROUP else None
    return Trial(queries, gallery, [found[i] for i in kept], exclude)


def same_group(groups: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> list[np.ndarray]:
    """For each of Q catalogue rows, the positions in a gallery of N rows whose product has its group, ascending."""
    order = np.argsort(groups[gallery], kind="stable")
    first, last = (np.searchsorted(groups[gallery], groups[queries], side, order) for side in ("left", "right"))
    return [order[a:b] for a, b in zip(first, last, strict=True)]


def _details(trial: Trial, queries: int, gallery: int) -> dict[str, int]:
    return {
        "queries": len(trial.queries),
        "queries_left_out": queries - len(trial.queries),
        "gallery": len(trial.gallery),
        "gallery_left_out": gallery - len(trial.gallery),
    }


def _measure(
    trials: dict[str, Trial],
    tables: dict[str, Vectors],
    ks: tuple[int, ...],
    mrr_cut: int,
    place: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> dict[str, float]:
    """Metrics of every direction; ``place`` puts queries of one modality among fused documents."""
    metrics: dict[str, float] = {}
    for direction, trial in trials.items():
        asked, documents = DIRECTIONS[direction]
        queries, gallery = tables[asked][0][trial.queries], tables[documents][0][trial.gallery]
        if documents == "fused" != asked and place is not None:
            queries = place(asked, queries)
        found = retrieval_metrics(queries, gallery, trial.relevant, ks=ks, mrr_cut=mrr_cut, exclude=trial.exclude)
        if trial.related is not None:
            ranking, _ = ranked(queries, gallery, max(ks), exclude=trial.exclude)
            found |= _graded(trial, ranking, max(ks))
        metrics |= {f"{direction}/{key}": value for key, value in found.items()}
    return metrics


def _related(trial: Trial, values: np.ndarray) -> list[np.ndarray]:
    """Per query, the gallery positions that share its value without being relevant; none where it has no value."""
    there = values[trial.gallery]
    positions = {value: np.flatnonzero(there == value) for value in np.unique(values[trial.queries]) if value}
    none = np.zeros(0, dtype=np.int64)
    own = [none] * len(trial.queries) if trial.exclude is None else [np.array([row]) for row in trial.exclude]
    return [
        np.setdiff1d(positions.get(values[query], none), np.concatenate([relevant, itself]), assume_unique=True)
        for query, relevant, itself in zip(trial.queries, trial.relevant, own, strict=True)
    ]


def _graded(trial: Trial, ranking: np.ndarray | None, k: int) -> dict[str, float]:
    """Graded NDCG of a ranking; of a random one, in expectation, if None."""
    assert trial.related is not None
    documents = [np.concatenate(both) for both in zip(trial.relevant, trial.related, strict=True)]
    pairs = zip(trial.relevant, trial.related, strict=True)
    grades = [np.repeat([2.0, 1.0], [len(relevant), len(related)]) for relevant, related in pairs]
    scores = {}
    kinds: dict[str, Gains] = {"graded_ndcg": "linear", "graded_ndcg_exponential": "exponential"}
    for name, gains in kinds.items():
        if ranking is not None:
            judged = judge(ranking, documents, grades)
        else:  # every rank of a random order gains the mean gain of the gallery
            total = np.array([(g if gains == "linear" else 2.0**g - 1).sum() for g in grades])
            mean = total / (len(trial.gallery) - (trial.exclude is not None))
            judged = np.tile((mean if gains == "linear" else np.log2(mean + 1))[:, None], k)
        scores[f"{name}@{k}"] = float(ndcg(judged, documents, k, grades, gains).mean())
    return scores


def _baselines(
    context: Context, trials: dict[str, Trial], ks: tuple[int, ...], mrr_cut: int
) -> dict[str, dict[str, float]]:
    baselines: dict[str, dict[str, float]] = {"random": {}}
    for direction, trial in trials.items():
        counts = np.array([len(positions) for positions in trial.relevant])
        expected = random_metrics(counts, len(trial.gallery) - (trial.exclude is not None), ks, mrr_cut)
        expected[f"mrr@{mrr_cut}"] = expected.pop("mrr")
        if trial.related is not None:
            expected |= _graded(trial, None, max(ks))
        baselines["random"] |= {f"{direction}/{key}": value for key, value in expected.items()}
    if context.untrained is not None:
        tables = _tables(context, context.untrained)
        allowed = {d: trial for d, trial in trials.items() if set(DIRECTIONS[d]) <= set(tables)}
        baselines["untrained"] = _measure(allowed, tables, ks, mrr_cut)
    if GROUP in trials:
        trial = trials[GROUP]
        if context.catalogue.has_image.any():
            found = _pixel_metrics(context, trial, ks, mrr_cut)
            baselines["pixels"] = {f"{GROUP}/{key}": value for key, value in found.items()}
        if context.catalogue.has_text.any():
            found = _word_metrics(context, trial, ks, mrr_cut)
            baselines["tfidf"] = {f"{GROUP}/{key}": value for key, value in found.items()}
    return baselines


def _pixel_metrics(context: Context, trial: Trial, ks: tuple[int, ...], mrr_cut: int) -> dict[str, float]:
    vectors = centred(raw_pixels(context.catalogue, trial.gallery))
    vectors[~context.catalogue.has_image[trial.gallery]] = 0
    assert trial.exclude is not None
    return retrieval_metrics(
        vectors[trial.exclude], vectors, trial.relevant, ks=ks, mrr_cut=mrr_cut, exclude=trial.exclude
    )


def _word_metrics(context: Context, trial: Trial, ks: tuple[int, ...], mrr_cut: int) -> dict[str, float]:
    titles = context.catalogue.text(next(iter(context.catalogue.fields)))
    (documents,) = tfidf([titles[row] for row in trial.gallery])
    assert trial.exclude is not None
    top: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    for order in word_orders(documents[trial.exclude], documents):
        for ranking in order:
            query = len(top)
            ranking = ranking[ranking != trial.exclude[query]]
            top.append(ranking[: max(*ks, mrr_cut)])
            ranks.append(np.flatnonzero(np.isin(ranking, trial.relevant[query])) + 1)
    judged, relevant = judge(np.stack(top), trial.relevant), trial.relevant
    values = {f"recall@{k}": recall(judged, relevant, k) for k in ks}
    values |= {f"hit@{k}": hit(judged, k) for k in ks} | {f"precision@{k}": precision(judged, k) for k in ks}
    values |= {f"ndcg@{k}": ndcg(judged, relevant, k) for k in ks}
    values |= {f"mrr@{mrr_cut}": reciprocal_rank(judged, mrr_cut), "map": average_precision(ranks)}
    means = {key: float(value.mean()) for key, value in values.items()}
    return {**means, "median_rank": float(np.median([r.min() for r in ranks]))}
