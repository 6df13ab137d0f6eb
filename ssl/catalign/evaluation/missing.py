"""How retrieval declines when documents lack their photo or their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion import Fusion
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import TIES, Context, QueryEmbedder, Result, Skipped, data_of, protocol
from catalign.evaluation.baselines import centred, random_metrics, raw_pixels, tfidf, word_orders
from catalign.evaluation.retrieval import same_group
from catalign.registry import register
from catalign.retrieval.metrics import judge, ranked, recall, reciprocal_rank

QUERIES = {"text-query": ("text",), "image-query": ("image",), "multimodal-query": ("text", "image")}
MODALITIES = ("text", "image")
COMPLETE, ALONE = "complete", {"text": "text_only", "image": "image_only"}
K = 10
VIEW = 0.8  # of each side of a photo
PHOTO = f"the middle {VIEW:.0%} of the photo's height and width, mirrored"
HALF = "every second word of the {}, from the first"


@dataclass
class Trial:
    """What is asked and searched.

    Attributes:
        texts: Q texts.
        photos: Q photos (H', W', 3) uint8.
        queries: (Q,) catalogue rows that they are views of.
        gallery: (N,) catalogue rows.
        relevant: Q arrays of gallery positions.
        documents: By kind, which of the N products have which modality: two (N,) bool.
    """

    texts: list[str]
    photos: list[np.ndarray]
    queries: np.ndarray
    gallery: np.ndarray
    relevant: list[np.ndarray]
    documents: dict[str, dict[str, np.ndarray]]


@register("protocol", "missing")
def missing(
    context: Context,
    *,
    split: str = "test",
    gallery: Literal["split", "all"] = "split",
    field: str | None = None,
    shares: list[float] = [0.25, 0.5, 1.0],  # noqa: B006 - a config's default, never changed
    max_queries: int | None = None,
) -> list[Result]:
    """Is a product still found when documents lack their photo or their text?

    Data: queries are views of the products of ``split`` that no document holds. text-query is the next text field that
    has a sampling weight, such as a description, cut as the encoder cuts it (where there is none: every second word of
    the primary text, from the first, for texts of two words or more; an easier task with another protocol id).
    image-query is the middle 80% of the photo's height and width, mirrored. multimodal-query is both, fused as
    documents are. All three ask for the same products, those with both views; the others are counted in ``details``.
    Gallery: the products of the split, or of the whole catalogue. Relevant: products of the query's group.

    Documents: primary text and photo, by the run's fusion. ``complete``: whatever a product has.
    ``missing_image_25``: 25% of the products with a photo have lost it, ``missing_text_25``: 25% of those with a text,
    and so on for every share. Products are drawn without regard to the run's seed, and those that lack something at
    one share lack it at every larger one. A lost modality is absent in the fusion's mask; a product that has lost
    everything is never retrieved and still counts as relevant. ``text_only`` and ``image_only``: the encoder's own
    vectors without fusion, for comparison; they are asked with what the query has of their modality, else with what it
    has of the other.

    Metrics, keyed ``<query>/<documents>/known-item/<metric>`` and averaged over queries: ``recall@10`` (relevant in the
    top 10 over all relevant) and ``mrr@10`` (1 over the rank of the first relevant product, 0 beyond 10). Equal scores
    are ranked in catalogue order.

    Baselines: ``random`` (expected, of a gallery where nothing is missing), ``untrained`` (the same model before
    training, fused 0.9 image + 0.1 text), ``tfidf`` (word match of the query text with documents' texts, as text_only),
    ``pixels`` (photos averaged to 16 × 12, centred, cosine, as image_only).

    Args:
        context: What is measured.
        split: Where queries come from.
        gallery: ``split`` or ``all``.
        field: The text field of queries, any but the primary one; null as said above.
        shares: Shares of the products that lose a modality, above 0 and up to 1.
        max_queries: Draw at most so many queries (always the same ones).

    Raises:
        CatalignError: A share out of range, or ``field`` is not among the catalogue's further text fields.
        Skipped: No text or no image embeddings, no embedder, a fusion of one of them alone, no product with both views,
            or no document with a text.
    """
    if not all(0 < share <= 1 for share in shares):
        raise CatalignError(f"evaluation.missing.shares is {shares}", "give shares above 0 and up to 1, such as 0.25")
    for name in MODALITIES:
        if name not in context.store.names:
            raise Skipped(f"missing needs {name} embeddings and this run has none", "train an alignment of both")
    if context.embedder is None:
        raise Skipped("missing needs an embedder for its queries")
    fusion = context.fuser(context.store)
    if not set(MODALITIES) <= set(fusion.names):
        raise Skipped(f"missing needs a fusion of text and image, and this run's takes {', '.join(fusion.names)}")
    catalogue, rows = context.catalogue, context.catalogue.rows(split)
    texts, asked = query_texts(catalogue, rows, field)
    chosen = np.flatnonzero(catalogue.has_image[rows] & context.embedder.knows(texts))
    details = {"queries_left_out": len(rows) - len(chosen)}
    if max_queries is not None and len(chosen) > max_queries:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, max_queries, replace=False))
    pool = rows if gallery == "split" else np.arange(len(catalogue))
    trial = _trial(context, rows[chosen], [texts[number] for number in chosen], pool, shares)
    metrics = _measure(context.store, context.embedder, fusion, trial)
    baselines = {"random": _random(trial, metrics)}
    if context.untrained is not None and (embedder := context.untrained_queries()) is not None:
        published = context.fuser(context.untrained, own=False)
        baselines["untrained"] = _measure(context.untrained, embedder, published, trial)
    baselines |= {"tfidf": _word_match(catalogue, trial), "pixels": _pixels(catalogue, trial)}
    record = protocol(
        "missing",
        f"{split}-{gallery}" if gallery == "all" else split,
        data=data_of(catalogue),
        split=split,
        gallery=gallery,
        text_query=asked,
        image_query=PHOTO,
        documents="primary text and photo, by the run's own fusion",
        shares=shares,
        relevant="same group",
        k=K,
        max_queries=max_queries,
        ties=TIES,
    )
    details |= {"queries": len(chosen), "gallery": len(pool)}
    details |= {f"with_{name}": int(has.sum()) for name, has in trial.documents[COMPLETE].items()}
    return [Result("missing", context.name, record, metrics, baselines, details)]


def _trial(context: Context, queries: np.ndarray, texts: list[str], pool: np.ndarray, shares: list[float]) -> Trial:
    has = {name: context.store.present(name)[pool] for name in MODALITIES}
    if not len(queries):
        raise Skipped("missing: no product of the split has both a text to ask with and a photo")
    if not has["text"].any():
        raise Skipped("missing: no document of the gallery has a text")
    documents = {COMPLETE: has}
    for name in ("image", "text"):
        for share in shares:
            documents[f"missing_{name}_{100 * share:g}"] = {**has, name: has[name] & ~losing(has[name], share)}
    photos = [view(context.catalogue.images[row]) for row in queries]
    return Trial(texts, photos, queries, pool, same_group(context.catalogue.groups, queries, pool), documents)


def query_texts(catalogue: Catalogue, rows: np.ndarray, field: str | None = None) -> tuple[list[str], str]:
    """Texts to ask for some products with, "" where there is none, and what they are."""
    primary, *others = catalogue.fields
    if field is not None and field not in others:
        raise unknown("text field that documents do not hold, evaluation.missing.field:", field, others)
    # A field of weight 0 may be one joined from attributes, which tells kinds of products apart but not products.
    asked = field or next((name for name in others if catalogue.fields[name] > 0), None)
    column = catalogue.text(asked or primary)
    texts = [column[row] for row in rows]
    if asked:
        return texts, asked
    words = [text.split() for text in texts]
    return [" ".join(words[::2]) if len(words) > 1 else "" for words in words], HALF.format(primary)


def view(photos: np.ndarray) -> np.ndarray:
    """The middle of photos (..., H, W, 3), mirrored: (..., H', W', 3), not scaled."""
    top, left = (round(side * (1 - VIEW) / 2) for side in photos.shape[-3:-1])
    height, width = photos.shape[-3:-1]
    return photos[..., top : height - top, left : width - left, :][..., ::-1, :]


def losing(has: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: which of those that have a modality (N,) lose it. Those of a smaller share are among them."""
    order = np.random.default_rng(0).permutation(len(has))
    order = order[has[order]]
    lost = np.zeros(len(has), dtype=bool)
    lost[order[: round(share * len(order))]] = True
    return lost


def _measure(store: EmbeddingStore, embedder: QueryEmbedder, fusion: Fusion, trial: Trial) -> dict[str, float]:
    asked = {"text": np.asarray(embedder.text(trial.texts)), "image": np.asarray(embedder.images(trial.photos))}
    vectors = {name: np.asarray(store[name][trial.gallery]) for name in MODALITIES}
    fused = {query: fusion({name: asked[name] for name in parts}) for query, parts in QUERIES.items()}
    metrics: dict[str, float] = {}
    for kind, has in trial.documents.items():
        documents, some = fusion(vectors, has), has["text"] | has["image"]
        for query in QUERIES:
            metrics |= _scores(f"{query}/{kind}", fused[query], documents, some, trial)
    for name, kind in ALONE.items():
        for query, parts in QUERIES.items():
            part, documents = asked[name if name in parts else parts[0]], vectors[name]
            if part.shape[1] == documents.shape[1]:  # else the encoders were not aligned
                metrics |= _scores(f"{query}/{kind}", part, documents, trial.documents[COMPLETE][name], trial)
    return metrics


def _scores(key: str, queries: np.ndarray, documents: np.ndarray, has: np.ndarray, trial: Trial) -> dict[str, float]:
    """Metrics of queries (Q, D) against those of the documents (N, D) that there are (N,)."""
    there = np.flatnonzero(has)
    ranking, _ = ranked(queries, documents[there], K)
    return _judged(key, there[ranking], trial.relevant)


def _judged(key: str, ranking: np.ndarray, relevant: list[np.ndarray]) -> dict[str, float]:
    judged = judge(ranking, relevant)
    values = {f"recall@{K}": recall(judged, relevant, K), f"mrr@{K}": reciprocal_rank(judged, K)}
    return {f"{key}/known-item/{metric}": float(value.mean()) for metric, value in values.items()}


def _random(trial: Trial, metrics: Mapping[str, float]) -> dict[str, float]:
    counts = np.array([len(positions) for positions in trial.relevant])
    expected = random_metrics(counts, len(trial.gallery), (K,), K)
    expected[f"mrr@{K}"] = expected.pop("mrr")
    return {key: expected[key.split("/")[-1]] for key in metrics}


def _word_match(catalogue: Catalogue, trial: Trial) -> dict[str, float]:
    titles, there = catalogue.text(next(iter(catalogue.fields))), _having(trial, "text")
    documents, queries = tfidf([titles[row] for row in trial.gallery[there]], trial.texts)
    ranking = np.concatenate([order[:, :K] for order in word_orders(queries, documents)])
    return _judged(f"text-query/{ALONE['text']}", there[ranking], trial.relevant)


def _pixels(catalogue: Catalogue, trial: Trial) -> dict[str, float]:
    there = _having(trial, "image")
    parts = raw_pixels(catalogue, trial.queries, view=view), raw_pixels(catalogue, trial.gallery[there])
    queries, documents = np.split(centred(np.concatenate(parts)), [len(trial.queries)])
    ranking, _ = ranked(queries, documents, K)
    return _judged(f"image-query/{ALONE['image']}", there[ranking], trial.relevant)


def _having(trial: Trial, name: str) -> np.ndarray:
    return np.flatnonzero(trial.documents[COMPLETE][name])
