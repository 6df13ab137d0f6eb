"""Panels of the report that show products: cards, retrieval grids, the map of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.errors import CatalignError
from catalign.reporting import plots
from catalign.training.run import Run

QUERIES, SHOWN, EXAMPLES = 400, 6, 3
"""Test queries ranked for a grid, answers shown per query, and hits and misses shown of each."""
MAPPED = 2000


class Search(NamedTuple):
    """A direction of retrieval among test products.

    Attributes:
        title: Such as ``"text → image"``.
        reading: What counts as correct.
        queries: (Q, D) vectors and ``query_rows`` (Q,) their catalogue rows.
        gallery: (G, D) vectors and ``gallery_rows`` (G,) their catalogue rows.
        itself: Whether a query's own product counts, or is left out of its answers.
        pictured: Whether a query is shown by its photo rather than its text.
    """

    title: str
    reading: str
    queries: np.ndarray
    query_rows: np.ndarray
    gallery: np.ndarray
    gallery_rows: np.ndarray
    itself: bool
    pictured: bool


def card(catalogue: Catalogue, row: int) -> dict[str, Any]:
    """A product as the template shows it: photo, title, id and a few attributes."""
    attributes = [str(values[row]) for values in catalogue.attributes.values() if values[row]]
    return {
        "id": catalogue.ids[row],
        "title": catalogue.text()[int(row)] or "(no title)",
        "picture": plots.picture(np.asarray(catalogue.images[row])) if catalogue.has_image[row] else None,
        "attributes": attributes[:4],
    }


def retrieval(run: Run, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Some hits and some misses on test products, text to image and image to product."""
    store = EmbeddingStore.open(run.path / "embeddings", verify=False)
    grids = []
    for search in _searches(run, catalogue, store):
        answers = _answer(search, catalogue.groups)
        hits = [entry for entry in answers if entry["rank"] <= SHOWN]
        misses = [entry for entry in answers if entry["rank"] > SHOWN]
        grids.append(
            {
                "title": search.title,
                "reading": search.reading,
                "queries": len(answers),
                "gallery": len(search.gallery_rows),
                "share": len(hits) / max(len(answers), 1),
                "median": float(np.median([entry["rank"] for entry in answers])),
                "hits": [_shown(search, catalogue, entry) for entry in hits[:EXAMPLES]],
                "misses": [_shown(search, catalogue, entry) for entry in misses[:EXAMPLES]],
            }
        )
    if not grids:
        raise CatalignError("no stage aligned text and image, so neither can find the other", "add one and run again")
    return grids


def _searches(run: Run, catalogue: Catalogue, store: EmbeddingStore) -> Iterator[Search]:
    if not {"text", "image"} <= set(store.names) or store["text"].shape[1] != store["image"].shape[1]:
        return
    test = catalogue.rows("test")
    worded, seen = test[store.present("text")[test]], test[store.present("image")[test]]
    queries = sample(worded, QUERIES)
    reading = "correct: a photo of the product whose title was asked for, or of one of its group"
    yield Search("Text → image", reading, store["text"][queries], queries, store["image"][seen], seen, True, False)
    fused, known = _fused(run, store)
    gallery = test[known[test]]
    groups, sizes = np.unique(catalogue.groups[gallery], return_counts=True)
    queries = sample(seen[np.isin(catalogue.groups[seen], groups[sizes > 1])], QUERIES)
    if len(queries):
        reading = "correct: another product of the photo's group; the product itself is left out"
        yield Search("Image → product", reading, store["image"][queries], queries, fused[gallery], gallery, False, True)
    else:
        queries = sample(seen, QUERIES)
        reading = "correct: the product in the photo, known to the gallery by its text alone"
        images, texts = store["image"][queries], store["text"][worded]
        yield Search("Image → text", reading, images, queries, texts, worded, True, True)


def _fused(run: Run, store: EmbeddingStore) -> tuple[np.ndarray, np.ndarray]:
    return fuse_store(Fusion.load(run.path / "fusion"), store)


def sample(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows in random order, always the same ones."""
    return np.random.default_rng(0).permutation(rows)[:count]


def _answer(search: Search, groups: np.ndarray) -> list[dict[str, Any]]:
    """Rank the gallery for every query; equal scores keep its order. Queries without an answer are left out."""
    scores = np.asarray(search.queries, np.float32) @ np.asarray(search.gallery, np.float32).T
    own = search.query_rows[:, None] == search.gallery_rows[None]
    relevant = groups[search.query_rows][:, None] == groups[search.gallery_rows][None]
    if not search.itself:
        scores[own] = -np.inf
        relevant &= ~own
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_relevance = np.take_along_axis(relevant, order, axis=1)
    answers = []
    for query in np.flatnonzero(relevant.any(1)):
        first = int(sorted_relevance[query].argmax())
        top = order[query, :SHOWN]
        answers.append(
            {
                "row": search.query_rows[query],
                "rank": first + 1,
                "first": search.gallery_rows[order[query, first]],
                "rows": search.gallery_rows[top],
                "scores": scores[query, top],
                "correct": sorted_relevance[query, :SHOWN],
            }
        )
    return answers


def _shown(search: Search, catalogue: Catalogue, entry: dict[str, Any]) -> dict[str, Any]:
    answers = [
        {**card(catalogue, row), "score": float(score), "correct": bool(correct)}
        for row, score, correct in zip(entry["rows"], entry["scores"], entry["correct"], strict=True)
    ]
    return {
        "query": card(catalogue, entry["row"]),
        "pictured": search.pictured,
        "answers": answers,
        "rank": entry["rank"],
        "right": None if any(entry["correct"]) else card(catalogue, entry["first"]),
    }


def embedding_map(run: Run, catalogue: Catalogue) -> dict[str, Any]:
    """A 2-D map of fused vectors of at most 2,000 products, coloured by the attribute that explains it best."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    store = EmbeddingStore.open(run.path / "embeddings", verify=False)
    vectors, known = _fused(run, store)
    rows = np.sort(sample(np.flatnonzero(known), MAPPED))
    chosen = np.asarray(vectors[rows], np.float32)
    if len(rows) < 10:
        raise CatalignError(f"a map of {len(rows)} products shows nothing")
    name, values, purity = _telling_attribute(catalogue, rows, chosen)
    points = PCA(min(30, *chosen.shape), random_state=0).fit_transform(chosen)
    method = "PCA" if len(rows) < 60 else "t-SNE"
    if method == "t-SNE":
        points = TSNE(perplexity=min(30, len(rows) // 4), init="pca", angle=0.7, random_state=0).fit_transform(points)
    shown = plots.most_common(values)
    svg = plots.embedding_map(
        points[:, :2], values, shown, label=f"{method} map of products coloured by {name or 'nothing'}"
    )
    legend = [(value, number, int(np.sum(np.asarray(values) == value))) for number, value in enumerate(shown, start=1)]
    others = len(rows) - sum(size for _, _, size in legend)
    return {
        "svg": Markup(svg),
        "method": method,
        "attribute": name,
        "legend": legend,
        "others": others,
        "products": len(rows),
        "purity": purity,
    }


def _telling_attribute(
    catalogue: Catalogue, rows: np.ndarray, vectors: np.ndarray
) -> tuple[str | None, list[str], float]:
    """The attribute whose values neighbours share most above chance, weighed by the share the map can colour."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    neighbours = np.argpartition(-similarity, min(10, len(rows) - 1), axis=1)[:, :10]
    best: tuple[float, str | None, list[str], float] = (-1.0, None, [""] * len(rows), 0.0)
    for name, column in catalogue.attributes.items():
        values = [str(value) for value in column[rows]]
        known = np.array([bool(value) for value in values])
        shown = np.isin(values, plots.most_common(values))
        if len(set(values)) < 2 or known.mean() < 0.5:
            continue
        _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        purity = float((codes[neighbours] == codes[:, None])[known].mean())
        gain = float((purity - np.square(counts / len(rows)).sum()) * shown.mean())
        if gain > best[0]:
            best = (gain, name, values, purity)
    return best[1:]
