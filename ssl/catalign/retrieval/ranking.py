"""Exact rankings with one tie rule, in memory that does not grow with queries times gallery.

The rule, everywhere in catalign: a document's score is the inner product computed in float64, documents are ordered by
score descending, and equal scores by gallery row ascending. Identical vectors therefore always tie, whatever the chunk
size, and a ranking never depends on the order in which a library happened to return candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import torch

from catalign.errors import CatalignError

_MARGIN = 16  # candidates beyond k that the float32 search brings, among which rounding and ties are settled
_DENSE_ELEMENTS = 2**24  # scores held at once by the chunked dense steps: 128 MB in float64
_FEW = 64  # relevant documents up to which counting better ones beats sorting the whole gallery


def ranked(
    queries: np.ndarray, gallery: np.ndarray, k: int, chunk: int = 2048, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best gallery rows of every query, exactly.

    A float32 search proposes candidates with a margin; their scores are computed again in float64. A query whose margin
    might hide a further candidate (many near-ties) gets a full float64 pass of its own.

    Args:
        queries: (Q, D) vectors.
        gallery: (N, D) vectors.
        k: Rows per query; clipped to the rows there are.
        chunk: Queries scored at a time, at most; fewer when k is large.
        exclude: (Q,) a gallery row that a query must not return (itself), -1 for none.

    Returns:
        (Q, k) int64 gallery rows, best first, and their (Q, k) float64 scores.

    Raises:
        CatalignError: Widths differ, a vector is not finite, or nothing is left to rank.
    """
    queries, gallery = _checked(queries, gallery)
    excluded = _excluded(exclude, len(queries), len(gallery))
    k = min(k, len(gallery) - int((excluded >= 0).any()))
    if k < 1:
        raise CatalignError(f"nothing to rank: k is {k} after excluding rows of a gallery of {len(gallery)}")
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float64)
    longest = float(np.linalg.norm(gallery, axis=1).max())
    step = max(1, min(chunk, _DENSE_ELEMENTS // ((k + 1 + _MARGIN) * gallery.shape[1])))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        rows[part], scores[part] = _best(queries[part], gallery, k, excluded[part], longest)
    return rows, scores


def _best(
    queries: np.ndarray, gallery: np.ndarray, k: int, excluded: np.ndarray, longest: float
) -> tuple[np.ndarray, np.ndarray]:
    last = k - 1 + int((excluded >= 0).any())  # a candidate that is surely no better than the k-th allowed one
    width = min(len(gallery), last + 1 + _MARGIN)
    approximate, candidates = faiss.knn(queries, gallery, width, metric=faiss.METRIC_INNER_PRODUCT)
    exact = np.einsum("qd,qcd->qc", queries.astype(np.float64), gallery[candidates].astype(np.float64))
    exact[candidates == excluded[:, None]] = -np.inf
    order = np.lexsort((candidates, -exact), axis=-1)[:, :k]
    rows, scores = np.take_along_axis(candidates, order, 1), np.take_along_axis(exact, order, 1)
    if width < len(gallery):
        scale = longest * np.linalg.norm(queries, axis=1)
        unsure = np.flatnonzero(approximate[:, -1] >= approximate[:, last] - 2 * rounding(queries, np.float32) * scale)
        if len(unsure):
            rows[unsure], scores[unsure] = _best_of_all(queries[unsure], gallery, k, excluded[unsure], scale[unsure])
    return rows, scores


def _best_of_all(
    queries: np.ndarray, gallery: np.ndarray, k: int, excluded: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k))
    queries, columns = queries.astype(np.float64), torch.from_numpy(gallery).double().T
    error = rounding(queries, np.float64) * scale
    step = max(1, _DENSE_ELEMENTS // len(gallery))
    for start in range(0, len(queries), step):
        dense = (torch.from_numpy(queries[start : start + step]) @ columns).numpy()
        for query, row in enumerate(dense, start):
            if excluded[query] >= 0:
                row[excluded[query]] = -np.inf
            near = np.flatnonzero(row >= np.partition(row, len(row) - k)[len(row) - k] - 2 * error[query])
            # Pair by pair, so that identical vectors get identical scores; a blocked product does not promise that.
            exact = np.einsum("d,cd->c", queries[query], gallery[near].astype(np.float64))
            best = np.lexsort((near, -exact))[:k]
            rows[query], scores[query] = near[best], exact[best]
    return rows, scores


def rounding(vectors: np.ndarray, kind: type) -> float:
    """Largest error of an inner product of vectors of length 1, in any order of summation (Higham 2002, 3.1)."""
    return vectors.shape[1] * float(np.finfo(kind).eps) / 2


def relevant_ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevant: Sequence[np.ndarray],
    chunk: int = 256,
    exclude: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The exact rank of every relevant document among the whole gallery, for mean average precision and median rank.

    Args:
        queries: (Q, D) vectors.
        gallery: (N, D) vectors.
        relevant: Q arrays of gallery rows.
        chunk: Queries scored at a time, at most; fewer when the gallery is large.
        exclude: (Q,) a gallery row that does not count for a query, -1 for none.

    Returns:
        Q int64 arrays of ranks from 1, in the order of ``relevant``.

    Raises:
        CatalignError: Widths or lengths differ, a vector is not finite, or a query's relevant document is excluded.
    """
    queries, gallery = _checked(queries, gallery)
    excluded = _excluded(exclude, len(queries), len(gallery))
    if len(relevant) != len(queries):
        raise CatalignError(f"{len(queries)} queries but relevant documents of {len(relevant)}")
    # Each distinct vector is scored once, so identical ones tie exactly: blocked matrix products do not promise that.
    distinct, inverse = np.unique(gallery.view(f"V{gallery.itemsize * gallery.shape[1]}").ravel(), return_inverse=True)
    columns = torch.from_numpy(
        np.frombuffer(distinct.tobytes(), np.float32).reshape(-1, gallery.shape[1]).astype("f8")
    ).T
    step = max(1, min(chunk, _DENSE_ELEMENTS // len(gallery)))
    ranks = []
    for start in range(0, len(queries), step):
        dense = (torch.from_numpy(queries[start : start + step].astype(np.float64)) @ columns).numpy()
        for query, scores in enumerate(dense[:, inverse], start):
            wanted = np.asarray(relevant[query], dtype=np.int64)
            if excluded[query] >= 0:
                if excluded[query] in wanted:
                    raise CatalignError(f"query {query}: row {excluded[query]} is both relevant and excluded")
                scores[excluded[query]] = -np.inf
            ranks.append(_ranks(scores, wanted))
    return ranks


def _ranks(scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if len(wanted) > _FEW:
        position = np.empty(len(scores), dtype=np.int64)
        position[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
        return position[wanted]
    better = [np.count_nonzero(scores > scores[row]) + np.count_nonzero(scores[:row] == scores[row]) for row in wanted]
    return np.array(better, dtype=np.int64) + 1


def _checked(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise CatalignError(f"queries {queries.shape} and gallery {gallery.shape} are not of one width")
    if not len(queries) or not len(gallery):
        raise CatalignError(f"{len(queries)} queries and a gallery of {len(gallery)}: nothing to rank")
    # Adding zero turns -0.0 into 0.0, so that equal vectors are equal bytes.
    arrays = [np.ascontiguousarray(array, dtype=np.float32) + np.float32(0) for array in (queries, gallery)]
    for name, array in zip(("query", "gallery vector"), arrays, strict=True):
        if not (finite := np.isfinite(array).all(axis=1)).all():
            raise CatalignError(f"{name} {int(np.argmin(finite))} has values that are not finite")
    return arrays[0], arrays[1]


def _excluded(exclude: np.ndarray | None, queries: int, gallery: int) -> np.ndarray:
    if exclude is None:
        return np.full(queries, -1, dtype=np.int64)
    excluded = np.asarray(exclude, dtype=np.int64)
    if excluded.shape != (queries,) or excluded.max(initial=-1) >= gallery:
        raise CatalignError(f"exclude needs one gallery row (below {gallery}) or -1 for each of {queries} queries")
    return excluded
