"""The trivial rows that stand beside every number: chance, word match, raw pixels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import gammaln

from catalign.data.catalogue import Catalogue
from catalign.errors import needed


def _missed(relevant: np.ndarray, gallery: int, depth: int) -> np.ndarray:
    """``(Q, depth + 1)``: the chance that none of a query's relevant items is in the top 0, 1, …, depth."""
    r, n = relevant[:, None].astype(float), float(gallery)
    k = np.arange(depth + 1)[None, :]
    possible = n - r - k >= 0
    log = gammaln(n - r + 1) - gammaln(np.maximum(n - r - k, 0) + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return np.where(possible, np.exp(log), 0.0)


def random_metrics(
    relevant: np.ndarray, gallery: int, ks: Sequence[int], mrr_cut: int | None = None
) -> dict[str, float]:
    """Expected metrics of a uniformly random ranking, in closed form, so that chance has no noise of its own.

    With ``R`` relevant of ``N`` items: recall@k is ``k/N``; precision@k is ``R/N``; hit@k and the first relevant
    rank follow the hypergeometric distribution; ``E[AP] = (H_N + (R-1)/(N-1) (N - H_N)) / N``.

    Args:
        relevant: Relevant items per query, ``(Q,)``, each at least 1.
        gallery: Number of items ranked.
        ks: Cut-offs.
        mrr_cut: Reciprocal ranks beyond this count as 0; None for no cut.
    """
    relevant, n = np.asarray(relevant), gallery
    counts, times = np.unique(relevant, return_counts=True)
    share = times / times.sum()
    missed = share @ _missed(counts, n, n)  # averaged over the queries, (N + 1,)
    ranks = np.arange(1, n + 1)
    first = missed[:-1] - missed[1:]
    harmonic = float((1 / ranks).sum())
    average_precision = (harmonic + (counts - 1) / max(n - 1, 1) * (n - harmonic)) / n
    discounts = 1 / np.log2(ranks + 1)
    metrics: dict[str, float] = {}
    for k in ks:
        top = min(k, n)
        metrics[f"recall@{k}"] = top / n
        metrics[f"hit@{k}"] = float(1 - missed[top])
        metrics[f"precision@{k}"] = float(share @ counts) / n * top / k
        ideal = np.array([discounts[: min(int(c), top)].sum() for c in counts])
        metrics[f"ndcg@{k}"] = float(share @ (counts / n * discounts[:top].sum() / ideal))
    metrics["mrr"] = float((first / ranks)[: mrr_cut or n].sum())
    metrics["map"] = float(share @ average_precision)
    metrics["median_rank"] = float(np.argmax(missed <= 0.5))
    return metrics


def tfidf(documents: Sequence[str], *queries: Sequence[str]) -> tuple[csr_matrix, ...]:
    """Unit TF-IDF vectors over lower-cased words (plural "s" cut), idf from the documents: word match, nothing else.

    Returns:
        The documents' vectors, then one sparse matrix per list of queries; words no document has are dropped.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(map(_words, documents)):
        return tuple(csr_matrix((len(texts), 1), dtype=np.float32) for texts in (documents, *queries))
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, dtype=np.float32, tokenizer=_words, token_pattern=None, lowercase=False
    )
    matrix = vectorizer.fit_transform(documents)
    return matrix, *(vectorizer.transform(texts) for texts in queries)


def bm25(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """BM25 scores ``(Q, N)``, 0 where no word is shared; English stop words and Snowball stems.

    Raises:
        CatalignError: The library bm25s or its stemmer is not installed.
    """
    bm25s, stemmer = needed("bm25s", "bench"), needed("Stemmer", "bench")
    options: dict[str, Any] = {"stopwords": "en", "stemmer": stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, **options), show_progress=False)
    words = bm25s.tokenize(queries, return_ids=False, **options)
    nothing = np.zeros(len(documents), dtype=np.float32)
    return np.stack([index.get_scores(query) if query else nothing for query in words])


def _words(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


def word_orders(queries: csr_matrix, documents: csr_matrix, chunk: int = 64) -> Iterator[np.ndarray]:
    """All documents in order of TF-IDF similarity, ``(up to chunk, N)`` rows at a time; ties in row order."""
    for start in range(0, queries.shape[0], chunk):
        yield np.argsort(-(queries[start : start + chunk] @ documents.T).toarray(), axis=1, kind="stable")


def raw_pixels(
    catalogue: Catalogue,
    rows: np.ndarray,
    size: tuple[int, int] = (16, 12),
    chunk: int = 2048,
    view: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
    """Photos averaged down to ``size`` and flattened, ``(len(rows), H*W*3)`` float32 in 0..1: no learning at all.

    ``view`` changes them before, ``(B, H, W, 3)`` to ``(B, H', W', 3)`` uint8.
    """
    starts = range(0, len(rows), chunk)
    parts = [averaged(view(catalogue.images[rows[start : start + chunk]]), size) for start in starts]
    return np.concatenate(parts) if parts else np.zeros((0, size[0] * size[1] * 3), dtype=np.float32)


def averaged(photos: np.ndarray, size: tuple[int, int] = (16, 12)) -> np.ndarray:
    """Photos (B, H, W, 3) uint8 averaged down to ``size`` and flattened, ``(B, h*w*3)`` float32 in 0..1."""
    import torch
    from torch.nn.functional import interpolate

    block = torch.from_numpy(np.ascontiguousarray(photos)).permute(0, 3, 1, 2)
    return np.asarray((interpolate(block.float(), size=size, mode="area") / 255).flatten(1).numpy())


def centred(vectors: np.ndarray) -> np.ndarray:
    """Vectors minus their mean, at unit length, so that cosine compares what differs."""
    vectors = vectors - vectors.mean(0, keepdims=True)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
