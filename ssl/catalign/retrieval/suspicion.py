"""How suspicious a listing is: from its photo and title, its neighbours, and the language model's surprise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from catalign.retrieval.neighbours import nearest

SPREAD = 5
"""Neighbours whose mean distance says how unlike others a listing is."""
SAMPLE = 2000


def disagreement(text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(N,) cosine distance between each title (N, D) and its photo (N, D), both of length 1."""
    return 1 - np.einsum("nd,nd->n", text, image)


def isolation(distances: np.ndarray) -> np.ndarray:
    """(M,) mean of the first 5 distances (M, k), nearest first.

    Ramaswamy et al. 2000, "Efficient algorithms for mining outliers from large data sets", take the last of k, Angiulli
    & Pizzuti 2002, "Fast outlier detection in high dimensional spaces", all of them.
    """
    return distances[:, :SPREAD].mean(1)


def doubt(shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M,) share of the neighbours' votes (M, C) that is not for the listing's own class (M,)."""
    return 1 - shares[np.arange(len(labels)), labels]


def tails(scores: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """(N,) how rare a score is: the share of listings whose score is at least as high.

    Args:
        scores: (N,); NaN where there is none, whose share is NaN too.
        reference: (M,) scores of other listings, which are sound; each of the N joins them to be compared. By default
            the N are compared with each other.
    """
    others = scores if reference is None else reference
    ordered, itself = np.sort(others[np.isfinite(others)]), int(reference is not None)
    above = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.where(np.isfinite(scores), (above + itself) / max(len(ordered) + itself, 1), np.nan)


def combined(rarities: Iterable[np.ndarray]) -> np.ndarray:
    """(N,) the negative logarithm of the rarest of several signals' :func:`tails`, as usually one thing is wrong.

    Tippett 1931, "The methods of statistics". On val it orders listings better than the sum over signals.
    """
    return -np.log(np.nanmin(np.stack(list(rarities)), axis=0))


def telling_attribute(attributes: Mapping[str, np.ndarray], vectors: np.ndarray) -> str | None:
    """The attribute whose values neighbours share most above chance, such as a category; None without any.

    Args:
        attributes: By name, (N,) texts, "" where missing.
        vectors: (N, D) of length 1; 2,000 of them, always the same ones, decide.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(vectors))[:SAMPLE])
    _, rows = nearest(vectors[chosen], vectors[chosen], 2 * SPREAD, exclude=np.arange(len(chosen)))
    best: tuple[float, str | None] = (0.0, None)
    for name, column in attributes.items():
        values = column[chosen].astype(str)
        known = values != ""
        _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        gain = float(known.mean() * ((codes[rows] == codes[:, None]).mean() - np.square(counts / len(codes)).sum()))
        if gain > best[0]:
            best = (gain, name)
    return best[1]
