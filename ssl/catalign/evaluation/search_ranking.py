"""Search ranking: short queries of shoppers against a catalogue, with human grades of what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from catalign.artifacts import digest
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError
from catalign.evaluation.base import TIES, Context, QueryEmbedder, Result, Skipped, data_of, protocol
from catalign.evaluation.baselines import bm25, random_metrics, tfidf
from catalign.evaluation.inputs import data_file, text_vectors, training
from catalign.evaluation.significance import RECORD, significance
from catalign.registry import register
from catalign.retrieval.metrics import Gains, judge, ndcg, ranked, recall, reciprocal_rank

QRELS = Path("icecat-search") / "qrels.csv"
COLUMNS = ("query", "docid", "rating")
K, DEEP = 10, 100
RRF_K = 60
GAINS: dict[str, Gains] = {f"ndcg@{K}": "linear", f"ndcg_exponential@{K}": "exponential"}
Gallery = Literal["full", "judged"]
GALLERIES: dict[Gallery, str] = {
    "full": "the whole catalogue; ungraded products gain nothing",
    "judged": "a query's graded products",
}
WEIGHTS = tuple(step / 10 for step in range(11))
FOLDS = 5
ROWS = {"encoder": "", "rrf": "rrf", "sum": "sum", "tuned": "tuned"}
"""What is measured, and the ending of its row's name."""


class Grades(NamedTuple):
    """Queries with something relevant, and what people said of products.

    Attributes:
        queries: Q texts.
        rows: Q arrays of the catalogue rows that were graded; a product the catalogue lacks has a row beyond its end.
        grades: Q arrays of their grades, 0 for irrelevant ones.
        details: Counts.
        digest: Hash of all grades.
    """

    queries: list[str]
    rows: list[np.ndarray]
    grades: list[np.ndarray]
    details: dict[str, int]
    digest: str

    def relevant(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rows and grades of the relevant products of each query, those with a grade above 0."""
        pairs = [(rows[grades > 0], grades[grades > 0]) for rows, grades in zip(self.rows, self.grades, strict=True)]
        return [rows for rows, _ in pairs], [grades for _, grades in pairs]


@register("protocol", "search_ranking")
def search_ranking(
    context: Context, *, qrels: str | None = None, galleries: list[Gallery] | None = None, weight: float = 0.5
) -> list[Result]:
    """Do the products that people call relevant come first?

    Data: the grades in ``<data.root>/icecat-search/qrels.csv`` (query, docid, rating 0 to 3; github.com/o19s/chorus):
    135 queries and 3,668 grades on 19,406 products. No training stage reads queries or grades. A product's text is all
    of the catalogue's text fields; its vector is the mean of its fields' vectors, at unit length. Queries without a
    relevant product (a grade above 0) in the catalogue are left out and counted.

    Gallery, each a protocol of its own: ``full``, the whole catalogue, where a product that nobody graded counts as
    irrelevant; ``judged``, a query's graded products alone, in the order of the same scores.

    Metrics, keyed without a task and averaged over queries: ``ndcg@10`` with linear gains, ``ndcg_exponential@10`` with
    gains 2^g - 1, ``mrr@10`` of the first relevant product; in the full gallery also ``recall@100`` and ``judged@10``,
    the share of the top 10 that was graded at all: what the full gallery holds against a row is no better known. Every
    metric has a bootstrap interval over queries and paired tests against the other rows (``significance``).

    Rows: the run's text encoder; ``-rrf``, reciprocal-rank fusion of BM25 and the encoder (Cormack et al. 2009: the sum
    of 1 / (60 + rank), of the products that a system found at all); ``-sum``, (1 - weight) of BM25's plus weight of the
    encoder's scores, each scaled to 0..1 over the catalogue per query (Bruch et al. 2022,
    https://arxiv.org/abs/2210.11934). The 60 and the weight were fixed before any query was read; ``-tuned`` is the sum
    with the weight of 0, .1, … 1 that has the best NDCG@10 on other queries, in five-fold cross-validation: the same
    paper finds that a handful of graded queries is enough for it.

    Baselines: ``random`` (expected), ``bm25`` (library bm25s: Robertson's BM25 as Lucene has it, k1 1.5, b .75, English
    stop words and Snowball stems), ``tfidf``, ``untrained`` (the same encoder before training).

    Args:
        context: What is measured.
        qrels: The file of grades, if elsewhere.
        galleries: ``full`` and ``judged``; null for both.
        weight: Share of the encoder in the sum of scores.

    Raises:
        Skipped: No text embeddings, no file of grades, or none of its relevant products is in the catalogue.
        CatalignError: The library bm25s is not installed, or the file is broken.
    """
    if "text" not in context.store.names or context.embedder is None:
        raise Skipped("search_ranking needs text embeddings and this run has none")
    remedy = f"columns {', '.join(COLUMNS)}; from github.com/o19s/chorus"
    path = data_file(context, "search_ranking.qrels", qrels, QRELS, remedy)
    grades = read_grades(path, context.catalogue.ids)
    scores = _all_scores(context, grades.queries, weight)
    return [
        result
        for gallery in galleries or GALLERIES
        for result in _results(context, grades, scores, gallery, _record(context, grades, gallery, weight))
    ]


def read_grades(path: Path, ids: list[str]) -> Grades:
    """Read a CSV file of grades against a catalogue's product ids, in row order.

    Raises:
        CatalignError: A column is missing, a rating is no number from 0 up, or a product is graded twice for a query.
        Skipped: None of its relevant products is in the catalogue.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table]:
        raise CatalignError(f"{path} has no column {', '.join(missing)}", f"it needs {', '.join(COLUMNS)}")
    table["rating"] = pd.to_numeric(table["rating"], errors="coerce")
    for bad, what in (
        (~(table["rating"] >= 0), "a rating that is no number from 0 up"),
        (table.duplicated(["query", "docid"]), "a product that its query has already graded"),
    ):
        if bad.any():
            raise CatalignError(f"{path}, line {int(bad.argmax()) + 2}: {what}", "mend or remove the line")
    row = {product: number for number, product in enumerate(ids)}
    table["row"] = [row.setdefault(product, len(row)) for product in table["docid"]]
    found = (table["rating"] > 0) & (table["row"] < len(ids))
    asked = [(str(query), part) for query, part in table.groupby("query") if found[part.index].any()]
    if not asked:
        raise Skipped(f"none of the relevant products in {path} is in this catalogue", "use data=icecat")
    details = {
        "queries": len(asked),
        "queries_left_out": table["query"].nunique() - len(asked),
        "grades": sum(len(part) for _, part in asked),
        "products_missing": len(row) - len(ids),
    }
    return Grades(
        [query for query, _ in asked],
        [part["row"].to_numpy() for _, part in asked],
        [part["rating"].to_numpy(dtype=np.float64) for _, part in asked],
        details,
        digest(sorted(table[list(COLUMNS)].itertuples(index=False, name=None))),
    )


def _record(context: Context, grades: Grades, gallery: Gallery, weight: float) -> dict[str, Any]:
    return protocol(
        "search_ranking",
        gallery,
        data=data_of(context.catalogue),
        qrels=grades.digest,
        gallery=GALLERIES[gallery],
        relevant="grade above 0",
        text=list(context.catalogue.fields),
        fusion=f"rrf {RRF_K}; sum with weight {weight}",
        tuned={"weights": WEIGHTS, "folds": FOLDS, "of": "queries in alphabetical order", "best": f"ndcg@{K}"},
        k=K,
        recall_k=DEEP,
        significance=RECORD,
        ties=TIES,
    )


def _all_scores(context: Context, queries: list[str], weight: float) -> dict[str, np.ndarray]:
    """Every row's (Q, N) scores of all products: ``bm25``, ``tfidf``, ``encoder``, ``rrf``, ``sum``, ``untrained``."""
    assert context.embedder is not None
    texts = list(context.catalogue.fields)
    documents = [" ".join(parts) for parts in zip(*map(context.catalogue.text, texts), strict=True)]
    matched, asked = tfidf(documents, queries)
    scores = {"bm25": bm25(documents, queries), "tfidf": (asked @ matched.T).toarray()}
    scores["encoder"] = _similarities(context.embedder, context.catalogue, queries)
    scores["rrf"] = reciprocal_rank_fusion(scores["bm25"], scores["encoder"])
    scores["sum"] = weighted_sum(_scaled(scores["bm25"]), _scaled(scores["encoder"]), weight)
    if (untrained := context.untrained_queries()) is not None:
        scores["untrained"] = _similarities(untrained, context.catalogue, queries)
    return scores


def _similarities(embedder: QueryEmbedder, catalogue: Catalogue, queries: list[str]) -> np.ndarray:
    """Cosines (Q, N) of queries and products, equal ones where vectors are equal; 0 for a text of no known word."""
    asked = text_vectors(embedder, queries)
    documents = np.sum([text_vectors(embedder, catalogue.text(name)) for name in catalogue.fields], axis=0)
    documents /= np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), 1e-12)
    rows, cosines = ranked(asked, documents, len(documents))
    scores = np.empty_like(cosines)
    np.put_along_axis(scores, rows, cosines, axis=1)
    return scores


def reciprocal_rank_fusion(*systems: np.ndarray, k: int = RRF_K) -> np.ndarray:
    """Sum of 1 / (k + rank) over systems' (Q, N) scores; a score of 0 says that a system did not find the product."""
    fused = np.zeros(systems[0].shape)
    for scores in systems:
        ranks = np.argsort(_order(scores), axis=1) + 1
        fused += np.where(scores == 0, 0.0, 1 / (k + ranks))
    return fused


def weighted_sum(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """(1 - weight) of the first plus weight of the second system's (Q, N) scores, both scaled to 0..1 per query."""
    return (1 - weight) * first + weight * second


def cross_validated(candidates: list[dict[str, np.ndarray]], metric: str) -> tuple[dict[str, np.ndarray], list[int]]:
    """Every query's metrics with the candidate that is best for the queries of the other folds.

    Folds are runs of neighbouring queries, so that in alphabetical order *laptop* and *laptops* hardly ever choose for
    each other.

    Args:
        candidates: Metrics (Q,) of every query, for each candidate.
        metric: What the best has the highest mean of; the first of several, or of all where there is one query alone.

    Returns:
        Metrics (Q,), and the number of the candidate of each fold.
    """
    values = np.stack([candidate[metric] for candidate in candidates])
    folds = np.array_split(np.arange(values.shape[1]), min(FOLDS, values.shape[1]))
    chosen = [int(np.delete(values, fold, axis=1).sum(axis=1).argmax()) for fold in folds]
    return {
        name: np.concatenate([candidates[best][name][fold] for best, fold in zip(chosen, folds, strict=True)])
        for name in candidates[0]
    }, chosen


def _order(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")


def _scaled(scores: np.ndarray) -> np.ndarray:
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - low) / np.maximum(high - low, 1e-12)


def _results(
    context: Context, grades: Grades, scores: dict[str, np.ndarray], gallery: Gallery, record: dict[str, Any]
) -> list[Result]:
    """The rows of one gallery, each with all baselines and with tests against what it has to beat."""
    cases = {name: query_metrics(found, grades, gallery) for name, found in scores.items()}
    cases["random"] = random_queries(grades, len(context.catalogue), gallery)
    lexical, dense = _scaled(scores["bm25"]), _scaled(scores["encoder"])
    sums = (weighted_sum(lexical, dense, weight) for weight in WEIGHTS)  # one at a time in memory
    cases["tuned"], chosen = cross_validated([query_metrics(found, grades, gallery) for found in sums], f"ndcg@{K}")
    means = {name: {key: float(values.mean()) for key, values in found.items()} for name, found in cases.items()}
    baselines: list[str] = [name for name in ("random", "bm25", "tfidf", "untrained") if name in cases]
    sure = {name: significance(cases[name]) for name in baselines}
    results = []
    for name, ending in ROWS.items():
        row = "-".join(filter(None, [context.name, "judged" if gallery == "judged" else "", ending]))
        compared = [*baselines, "encoder", *(["sum"] if name == "tuned" else [])]
        others = {other: cases[other] for other in compared if other not in (name, "random")}
        beside = {other: means[other] for other in baselines}
        details: dict[str, Any] = {**grades.details, "training": training(context)}
        if name == "tuned":
            details["weights"] = [WEIGHTS[best] for best in chosen]
        tests = {"ours": significance(cases[name], others), **sure}
        results.append(Result("search_ranking", row, record, means[name], beside, details, significance=tests))
    return results


def query_metrics(scores: np.ndarray, grades: Grades, gallery: Gallery) -> dict[str, np.ndarray]:
    """Each metric of every query (Q,), from scores (Q, N) of all products."""
    size = scores.shape[1]
    listed = np.zeros(scores.shape, dtype=bool)
    for query, rows in enumerate(grades.rows):
        listed[query, rows[rows < size]] = True
    if gallery == "judged":
        scores = np.where(listed, scores, -np.inf)
    ranking = _order(scores)[:, :DEEP]
    relevant, gained = grades.relevant()
    judged = judge(ranking, relevant, gained)
    metrics = {name: ndcg(judged, relevant, K, gained, gains) for name, gains in GAINS.items()}
    metrics[f"mrr@{K}"] = reciprocal_rank(judged, K)
    if gallery == "full":
        metrics[f"recall@{DEEP}"] = recall(judged, relevant, DEEP)
        metrics[f"judged@{K}"] = np.take_along_axis(listed, ranking[:, :K], axis=1).mean(axis=1)
    return metrics


def random_queries(grades: Grades, size: int, gallery: Gallery) -> dict[str, np.ndarray]:
    """Expected metrics of every query (Q,) under a uniformly random order of its gallery, in closed form."""
    relevant, gained = grades.relevant()
    found = [given[rows < size] for rows, given in zip(relevant, gained, strict=True)]
    sizes = [size if gallery == "full" else int((rows < size).sum()) for rows in grades.rows]
    metrics = {}
    for name, gains in GAINS.items():
        judged = np.zeros((len(sizes), K))  # every rank gains the mean gain of the gallery
        for query, (given, count) in enumerate(zip(found, sizes, strict=True)):
            mean = (given if gains == "linear" else 2.0**given - 1).sum() / count
            judged[query, :count] = mean if gains == "linear" else np.log2(mean + 1)
        metrics[name] = ndcg(judged, relevant, K, gained, gains)
    chance = [random_metrics(np.array([len(f)]), n, (DEEP,), K) for f, n in zip(found, sizes, strict=True)]
    metrics[f"mrr@{K}"] = np.array([expected["mrr"] for expected in chance])
    if gallery == "full":
        metrics[f"recall@{DEEP}"] = np.array([expected[f"recall@{DEEP}"] for expected in chance])
        metrics[f"judged@{K}"] = np.array([len(rows) / size for rows in grades.rows])
    return metrics
