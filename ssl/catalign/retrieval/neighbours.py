"""Nearest neighbours as judges: how far away they are, what they vote for, and how sure a vote must be."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import torch
from scipy.sparse import issparse

NEIGHBOURS, TEMPERATURE = 20, 0.1
Features = Any  # (N, D) float array or CSR matrix


def nearest(
    bank: Features, queries: Features, k: int = NEIGHBOURS, exclude: np.ndarray | None = None, chunk: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of a bank, by Euclidean distance.

    Args:
        bank: (N, D), dense, or CSR with rows of length 1.
        queries: (M, D) of the same form.
        k: Rows per query; clipped to the rows there are.
        exclude: (M,) a bank row that a query must not find (itself); of dense banks alone.
        chunk: Sparse queries compared at once.

    Returns:
        (M, k) distances, nearest first, and (M, k) bank rows.
    """
    if issparse(bank):
        return _nearest_words(bank, queries, min(k, bank.shape[0]), chunk)
    bank, queries = (np.ascontiguousarray(array, dtype=np.float32) for array in (bank, queries))
    k = min(k, len(bank) - (exclude is not None))
    squared, rows = map(np.asarray, faiss.knn(queries, bank, k + (exclude is not None), metric=faiss.METRIC_L2))
    if exclude is not None:  # of many equal vectors it may not be among the nearest: then the last one goes
        order = np.argsort(rows == exclude[:, None], axis=1, kind="stable")[:, :k]
        squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
    return np.sqrt(np.maximum(squared, 0)), rows


def _nearest_words(bank: Features, queries: Features, k: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    found = [
        torch.from_numpy((queries[start : start + chunk] @ bank.T).toarray()).topk(k, dim=1)
        for start in range(0, queries.shape[0], chunk)
    ]
    similarities = torch.cat([part.values for part in found]).numpy()
    return np.sqrt(np.maximum(2 - 2 * similarities, 0)), torch.cat([part.indices for part in found]).numpy()


def votes(distances: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Shares of the votes of neighbours, weighted by exp(cosine similarity / 0.1).

    Wu et al., 2018, "Unsupervised feature learning via non-parametric instance discrimination".

    Args:
        distances: (M, k) of vectors of length 1, nearest first.
        labels: (M, k) class numbers of the neighbours.
        classes: C.

    Returns:
        (M, C), rows that sum to 1.
    """
    similarity = 1 - np.square(distances.astype(np.float64)) / 2
    weights = np.exp((similarity - similarity[:, :1]) / TEMPERATURE)
    shares = np.zeros((len(distances), classes))
    np.add.at(shares, (np.arange(len(distances))[:, None], labels), weights)
    return shares / weights.sum(1, keepdims=True)


def threshold_at(confidence: np.ndarray, right: np.ndarray, precision: float) -> float:
    """The lowest confidence at which answers that are at least as confident have the wished precision.

    Args:
        confidence: (N,) of every answer.
        right: (N,) bool.
        precision: Wished share of right answers.

    Returns:
        The threshold; infinity if there is none.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    reached = np.cumsum(right[order]) / np.arange(1, len(order) + 1) >= precision
    reached[:-1] &= ordered[:-1] != ordered[1:]  # equal confidences are accepted together
    last = np.flatnonzero(reached)
    return float(ordered[last[-1]]) if len(last) else float("inf")
