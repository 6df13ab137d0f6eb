"""Ranking metrics over exact rankings: recall, hit rate, precision, MRR, MAP, NDCG, median rank.

Every metric returns one value per query, (Q,) float64, so that means, spreads and paired tests are the caller's choice.
*Judged* is the (Q, K) array of the grades of what was retrieved, in rank order, 0 where it was not relevant. Rankings
come from :mod:`catalign.retrieval.ranking`, whose two functions are available here too.

References:
    Järvelin & Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002 (NDCG, linear gain).
    Burges et al., Learning to rank using gradient descent, ICML 2005 (NDCG, exponential gain 2^g - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from catalign.errors import CatalignError, unknown
from catalign.retrieval.ranking import ranked, relevant_ranks

__all__ = [
    "average_precision",
    "best_rank",
    "hit",
    "judge",
    "ndcg",
    "precision",
    "ranked",
    "recall",
    "reciprocal_rank",
    "relevant_ranks",
    "retrieval_metrics",
]

Gains = Literal["linear", "exponential"]


def judge(
    ranking: np.ndarray, relevant: Sequence[np.ndarray], grades: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """The grades of what was retrieved.

    Args:
        ranking: (Q, K) gallery rows, best first.
        relevant: Q arrays of the gallery rows relevant to each query, without repetition.
        grades: Their grades, above 0; all 1 if None.

    Returns:
        (Q, K) float64.

    Raises:
        CatalignError: A query has no relevant document, one is listed twice, or a grade is not above 0.
    """
    counts = _counts(relevant)
    if len(ranking) != len(counts):
        raise CatalignError(f"{len(ranking)} rankings but relevant documents of {len(counts)} queries")
    rows = np.concatenate([np.asarray(row, dtype=np.int64) for row in relevant])
    flat = np.ones(len(rows)) if grades is None else np.concatenate([np.asarray(g, dtype=np.float64) for g in grades])
    if len(flat) != len(rows) or not (flat > 0).all():
        raise CatalignError("grades must be one number above 0 for each relevant document")
    size = int(max(rows.max(), ranking.max(initial=0))) + 1
    keys = np.repeat(np.arange(len(counts)), counts) * size + rows
    order = np.argsort(keys)
    keys, flat = keys[order], flat[order]
    if (repeated := keys[1:] == keys[:-1]).any():
        query, row = divmod(int(keys[:-1][repeated][0]), size)
        raise CatalignError(f"query {query} lists the relevant document {row} twice")
    wanted = np.arange(len(counts))[:, None] * size + ranking
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, flat[place], 0.0)


def recall(judged: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Relevant documents in the top k over all relevant ones (true recall, as trec_eval and KAGL count it)."""
    return (judged[:, :k] > 0).sum(axis=1) / _counts(relevant)


def hit(judged: np.ndarray, k: int) -> np.ndarray:
    """1 where the top k holds at least one relevant document: what CLIP-style papers print as R@k."""
    return np.asarray((judged[:, :k] > 0).any(axis=1), dtype=np.float64)


def precision(judged: np.ndarray, k: int) -> np.ndarray:
    """Relevant documents in the top k over k, also where the gallery is smaller than k."""
    return (judged[:, :k] > 0).sum(axis=1) / k


def reciprocal_rank(judged: np.ndarray, k: int | None = None) -> np.ndarray:
    """1 over the rank of the first relevant document; 0 where the top k (or all that was retrieved) has none."""
    found = judged[:, :k] > 0
    return np.where(found.any(axis=1), 1.0 / (found.argmax(axis=1) + 1.0), 0.0)


def ndcg(
    judged: np.ndarray,
    relevant: Sequence[np.ndarray],
    k: int,
    grades: Sequence[np.ndarray] | None = None,
    gains: Gains = "linear",
) -> np.ndarray:
    """Discounted gain of the top k over that of the best possible top k; discount 1 / log2(rank + 1).

    Args:
        judged: (Q, K) grades in rank order.
        relevant: The relevant documents of each query.
        k: The cut.
        grades: Grades of all relevant documents; all 1 if None.
        gains: ``"linear"`` gains the grade g, ``"exponential"`` 2^g - 1.
    """
    if gains not in ("linear", "exponential"):
        raise unknown("gains", gains, ("linear", "exponential"))
    _counts(relevant)
    ideal = np.zeros((len(judged), k))
    for query, rows in enumerate(relevant):
        best = np.ones(len(rows)) if grades is None else np.sort(np.asarray(grades[query], dtype=np.float64))[::-1]
        ideal[query, : len(best)] = best[:k]
    retrieved, best_possible = (2.0**a - 1 if gains == "exponential" else a for a in (judged[:, :k], ideal))
    discounts = 1 / np.log2(np.arange(2, k + 2))
    return (retrieved @ discounts[: retrieved.shape[1]]) / (best_possible @ discounts)


def average_precision(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the relevant documents of the precision at their rank; its mean over queries is MAP.

    Args:
        ranks: Ranks of every relevant document, from 1, of each query: :func:`relevant_ranks`.
    """
    _counts(ranks)
    return np.array([(np.arange(1, len(r) + 1) / np.sort(r)).mean() for r in ranks])


def best_rank(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """The rank of the first relevant document, from 1; its median over queries is the median rank."""
    _counts(ranks)
    return np.array([r.min() for r in ranks], dtype=np.float64)


def retrieval_metrics(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevant: Sequence[np.ndarray],
    *,
    grades: Sequence[np.ndarray] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    mrr_cut: int = 10,
    full: bool = True,
    exclude: np.ndarray | None = None,
) -> dict[str, float]:
    """All metrics of one retrieval task, averaged over queries.

    Args:
        queries: (Q, D) vectors.
        gallery: (N, D) vectors.
        relevant: Q arrays of relevant gallery rows.
        grades: Their grades; all 1 if None. NDCG with exponential gain is given only where there are grades.
        ks: Cuts of recall, hit, precision and NDCG.
        mrr_cut: Cut of the reciprocal rank.
        full: Also MAP and median rank, which need the rank of every relevant document.
        exclude: (Q,) a gallery row that a query must not return, -1 for none.

    Returns:
        ``recall@k``, ``hit@k``, ``precision@k``, ``ndcg@k`` and ``ndcg_exponential@k``, ``mrr@cut``, ``map``,
        ``median_rank``.

    Raises:
        CatalignError: A query without relevant documents, or as :func:`ranked`.
    """
    ranking, _ = ranked(queries, gallery, max(*ks, mrr_cut), exclude=exclude)
    judged = judge(ranking, relevant, grades)
    values: dict[str, np.ndarray] = {}
    for k in ks:
        values[f"recall@{k}"] = recall(judged, relevant, k)
        values[f"hit@{k}"] = hit(judged, k)
        values[f"precision@{k}"] = precision(judged, k)
        values[f"ndcg@{k}"] = ndcg(judged, relevant, k, grades)
        if grades is not None:
            values[f"ndcg_exponential@{k}"] = ndcg(judged, relevant, k, grades, "exponential")
    values[f"mrr@{mrr_cut}"] = reciprocal_rank(judged, mrr_cut)
    means = {name: float(value.mean()) for name, value in values.items()}
    if full:
        ranks = relevant_ranks(queries, gallery, relevant, exclude=exclude)
        means["map"] = float(average_precision(ranks).mean())
        means["median_rank"] = float(np.median(best_rank(ranks)))
    return means


def _counts(relevant: Sequence[np.ndarray]) -> np.ndarray:
    counts = np.array([len(rows) for rows in relevant], dtype=np.int64)
    if not len(counts) or not counts.all():
        which = f"query {int(np.argmin(counts))} has no relevant document" if len(counts) else "there are no queries"
        raise CatalignError(which, "leave out queries without a relevant document; their metrics are undefined")
    return counts
