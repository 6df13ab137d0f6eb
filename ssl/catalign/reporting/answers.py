"""What runs answer to the same queries on test products: some drawn by chance, and the hardest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.errors import CatalignError
from catalign.evaluation.base import data_of
from catalign.reporting.comparison import Variant, each, firsts
from catalign.reporting.panels import card, sample
from catalign.training.run import Run

QUERIES, SHOWN, EXAMPLES, HARDEST = 400, 6, 3, 6
"""Test queries ranked for a grid, answers shown per query, hits and misses shown of each, and hardest queries."""


class Search(NamedTuple):
    """A direction of retrieval among test products.

    Attributes:
        title: Such as ``"text → image"``.
        reading: What counts as correct.
        queries: From catalogue rows (q,) to vectors (q, D); ``query_rows`` (Q,) are those that may be asked for.
        gallery: (G, D) vectors and ``gallery_rows`` (G,) their catalogue rows.
        itself: Whether a query's own product counts, or is left out of its answers.
        pictured: Whether a query is shown by its photo rather than its text.
    """

    title: str
    reading: str
    queries: Callable[[np.ndarray], np.ndarray]
    query_rows: np.ndarray
    gallery: np.ndarray
    gallery_rows: np.ndarray
    itself: bool
    pictured: bool


class Answer(NamedTuple):
    """What one query got.

    Attributes:
        rank: Of the first correct product, from 1, and ``first`` its catalogue row.
        rows: (k,) catalogue rows of the best products, ``scores`` (k,) theirs, ``correct`` (k,) bool.
    """

    rank: int
    first: int
    rows: np.ndarray
    scores: np.ndarray
    correct: np.ndarray


def retrieval(compared: Sequence[Variant]) -> dict[str, Any]:
    """Answers to the same test queries side by side, text to image and image to product.

    Variants whose catalogues hold other products or other splits have no query in common, and get grids of their own.

    Returns:
        ``grids`` and ``notes`` on variants that cannot be searched.

    Raises:
        CatalignError: None can.
    """
    found, notes = each(firsts(compared), _opened)
    alike: dict[str, list[str]] = {}
    for name, (catalogue, _) in found.items():
        alike.setdefault(data_of(catalogue), []).append(name)
    grids = []
    for names in alike.values():
        catalogue = found[names[0]][0]
        for title in dict.fromkeys(title for name in names for title in found[name][1]):
            searches = {name: of for name in names if (of := found[name][1].get(title))}
            grids += [grid] if (grid := _grid(searches, catalogue)) else []
    if not grids:
        raise CatalignError("no test query has an answer in the gallery", "give the catalogue more test products")
    if len(alike) > 1:
        groups = "; ".join(" and ".join(names) for names in alike.values())
        notes.append(f"their test products differ, so they are asked different queries: {groups}")
    return {"grids": grids, "notes": notes}


def _opened(run: Run) -> tuple[Catalogue, dict[str, Search]]:
    catalogue, store = run.catalogue(), EmbeddingStore.open(run.path / "embeddings", verify=False)
    searches = {search.title: search for search in _searches(run, catalogue, store)}
    if not searches:
        raise CatalignError("no stage aligned text and image, so neither can find the other", "add one and run again")
    return catalogue, searches


def _searches(run: Run, catalogue: Catalogue, store: EmbeddingStore) -> Iterator[Search]:
    if not {"text", "image"} <= set(store.names) or store["text"].shape[1] != store["image"].shape[1]:
        return
    test = catalogue.rows("test")
    worded, seen = test[store.present("text")[test]], test[store.present("image")[test]]
    reading = "correct: a photo of the product whose title was asked for, or of one of its group"
    yield Search("Text → image", reading, store["text"].__getitem__, worded, store["image"][seen], seen, True, False)
    fusion = Fusion.load(run.path / "fusion")
    vectors, known = fuse_store(fusion, store)
    gallery = test[known[test]]
    groups, sizes = np.unique(catalogue.groups[gallery], return_counts=True)
    queries = seen[np.isin(catalogue.groups[seen], groups[sizes > 1])]
    if len(queries):
        reading = "correct: another product of the photo's group; the product itself is left out"

        def placed(rows: np.ndarray) -> np.ndarray:
            return fusion({"image": store["image"][rows]})

        yield Search("Image → product", reading, placed, queries, vectors[gallery], gallery, False, True)
    else:
        reading = "correct: the product in the photo, known to the gallery by its text alone"
        images = store["image"].__getitem__
        yield Search("Image → text", reading, images, seen, store["text"][worded], worded, True, True)


def _grid(searches: Mapping[str, Search], catalogue: Catalogue) -> dict[str, Any] | None:
    """One direction: how often each variant finds, and its answers to some common queries; None without any."""
    first = next(iter(searches.values()))
    drawn = sample(reduce(np.intersect1d, [search.query_rows for search in searches.values()]), QUERIES)
    answers = {name: answer(search, drawn, catalogue.groups) for name, search in searches.items()}
    asked = [int(row) for row in drawn if all(row in of for of in answers.values())]
    if not asked:
        return None
    ranks = {row: [of[row].rank for of in answers.values()] for row in asked}
    found = [row for row in asked if max(ranks[row]) <= SHOWN]
    missed = [row for row in asked if max(ranks[row]) > SHOWN]
    hardest = sorted(missed, key=lambda row: -np.mean(ranks[row]))[:HARDEST]
    examples = found[:EXAMPLES] + missed[:EXAMPLES]
    return {
        "title": first.title,
        "reading": first.reading,
        "queries": len(asked),
        "sides": [_side(name, [of[row].rank for row in asked], searches[name]) for name, of in answers.items()],
        "examples": [_shown(row, answers, searches, catalogue) for row in examples],
        "hardest": [_shown(row, answers, searches, catalogue) for row in hardest],
    }


def _side(name: str, ranks: list[int], search: Search) -> dict[str, Any]:
    share, median = np.mean(np.asarray(ranks) <= SHOWN), np.median(ranks)
    return {"name": name, "share": float(share), "median": float(median), "gallery": len(search.gallery_rows)}


def answer(search: Search, rows: np.ndarray, groups: np.ndarray) -> dict[int, Answer]:
    """Rank the gallery for some queries; equal scores keep its order. Queries without an answer are left out.

    Args:
        search: The direction.
        rows: (Q,) catalogue rows of the queries.
        groups: (N,) group of every product.
    """
    gallery = search.gallery_rows
    scores = np.asarray(search.queries(rows), np.float32) @ np.asarray(search.gallery, np.float32).T
    own = rows[:, None] == gallery[None]
    relevant = groups[rows][:, None] == groups[gallery][None]
    if not search.itself:
        scores[own] = -np.inf
        relevant &= ~own
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_relevance = np.take_along_axis(relevant, order, axis=1)
    answers = {}
    for query in np.flatnonzero(relevant.any(1)):
        first, top = int(sorted_relevance[query].argmax()), order[query, :SHOWN]
        answers[int(rows[query])] = Answer(
            first + 1, gallery[order[query, first]], gallery[top], scores[query, top], sorted_relevance[query, :SHOWN]
        )
    return answers


def _shown(
    row: int, answers: Mapping[str, Mapping[int, Answer]], searches: Mapping[str, Search], catalogue: Catalogue
) -> dict[str, Any]:
    """A query as the template shows it, with a strip of answers per variant."""
    strips = []
    for name, of in answers.items():
        got = of[row]
        products = [
            {**card(catalogue, place), "score": float(score), "correct": bool(correct)}
            for place, score, correct in zip(got.rows, got.scores, got.correct, strict=True)
        ]
        right = None if got.correct.any() else card(catalogue, got.first)
        size = len(searches[name].gallery_rows)
        strips.append({"name": name, "answers": products, "rank": got.rank, "right": right, "gallery": size})
    pictured = next(iter(searches.values())).pictured
    return {"query": card(catalogue, row), "pictured": pictured, "strips": strips}
