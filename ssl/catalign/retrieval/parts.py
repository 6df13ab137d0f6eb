"""What the index needs of FAISS: kinds of index, their tuning, and the search parameters that each kind takes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from catalign.errors import CatalignError

REMEDY = "build it again: catalign index RUN"


def make(width: int, factory: str) -> faiss.Index:
    """An empty inner-product index that keeps ids.

    Raises:
        CatalignError: FAISS does not know the factory string, or it does not fit the width.
    """
    try:
        base = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise CatalignError(
            f"index.factory {factory!r} for vectors of width {width}: {reason(error)}",
            "try Flat (exact), SQ8, HNSW32 or 'IVF256,Flat'",
        ) from None
    # IVF keeps ids itself; under an id map its removals would shift the id of every later product.
    return base if isinstance(core(base), faiss.IndexIVF) else faiss.IndexIDMap2(base)


def tune(index: faiss.Index, factory: str, nprobe: int | None, ef_search: int | None) -> None:
    """Set how much of an approximate index is searched.

    Raises:
        CatalignError: The kind of index has no such setting.
    """
    inner = core(index)
    if nprobe is not None:
        if not isinstance(inner, faiss.IndexIVF):
            raise CatalignError(f"index.nprobe is for IVF, not for the factory {factory!r}", "leave it null")
        inner.nprobe = nprobe
    if ef_search is not None:
        if not isinstance(inner, faiss.IndexHNSW):
            raise CatalignError(f"index.ef_search is for HNSW, not for the factory {factory!r}", "leave it null")
        inner.hnsw.efSearch = ef_search


def train(index: faiss.Index, factory: str, vectors: np.ndarray) -> None:
    """Train the kinds that need it.

    Raises:
        CatalignError: There are fewer vectors than lists or centroids to find.
    """
    try:
        index.train(vectors)
    except RuntimeError as error:
        if "training points" not in str(error):
            raise
        raise CatalignError(
            f"index.factory {factory!r} needs more training vectors than {len(vectors)}: {reason(error)}",
            f"use Flat (exact, and fast at this size), or at most IVF{max(1, len(vectors) // 39)},Flat",
        ) from None


def search_parameters(index: faiss.Index, allowed: np.ndarray | None, everything: bool) -> faiss.SearchParameters:
    """The parameters that restrict a search to some labels, keeping the index's own settings.

    Args:
        index: The index; an id map translates the selector, a transform hands the parameters on.
        allowed: Labels to search among; all if None.
        everything: Visit every list or graph node, however the index is tuned.
    """
    untyped: Any = faiss  # its stubs lack the keywords that these classes take
    selector, inner = None if allowed is None else faiss.IDSelectorBatch(allowed), core(index)
    if isinstance(inner, faiss.IndexIVF):
        return untyped.SearchParametersIVF(sel=selector, nprobe=inner.nlist if everything else inner.nprobe)
    if isinstance(inner, faiss.IndexHNSW):
        effort = inner.ntotal if everything else inner.hnsw.efSearch
        return untyped.SearchParametersHNSW(sel=selector, efSearch=effort)
    return untyped.SearchParameters(sel=selector)


def core(index: faiss.Index) -> faiss.Index:
    """The index that does the searching, below id maps and transforms."""
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def matrix(vectors: np.ndarray, width: int | None) -> np.ndarray:
    """Float32, row after row in memory, as FAISS needs vectors.

    Raises:
        CatalignError: Another width than the index's, or values that are not finite.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or width not in (None, vectors.shape[1]):
        raise CatalignError(
            f"vectors of shape {vectors.shape} for an index of width {width or 'D, so (N, D)'}",
            f"index and vectors must come from the same embeddings; {REMEDY}",
        )
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise CatalignError(f"vector {int(np.argmin(finite))} has values that are not finite")
    return vectors


def reason(error: RuntimeError) -> str:
    """What FAISS complains about, without the C++ signature before it."""
    return str(error).rsplit(": ", 1)[-1]
