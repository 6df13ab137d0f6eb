"""The exact rank of one target per question among all products, some of them hidden from the question.

The order is that of :mod:`catalign.retrieval.ranking`: score descending, equal scores by product row ascending.
Questions are scored a chunk at a time, so that memory does not grow with questions times products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from scipy.sparse import csr_matrix

from catalign.data.ragged import Ragged
from catalign.errors import CatalignError
from catalign.retrieval.ranking import rounding

_SCORES = 2**21  # scores held at once: 8 MB in float32
_EXACT_ELEMENTS = 2**22  # numbers multiplied at once when pairs are scored in float64: 32 MB


class Scorer(ABC):
    """Scores products for questions, more is better. A product of score -inf is never found.

    Attributes:
        products: N, the number of products.
    """

    products: int

    @abstractmethod
    def block(self, questions: np.ndarray) -> np.ndarray:
        """(B, N) scores of every product for some questions (B,), in an array of the caller's own."""

    def chosen(self, questions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(B, n) exact scores of products ``rows`` (B, n): equal products have equal scores."""
        return np.take_along_axis(self.block(questions), rows, axis=1)

    def rounding(self, questions: np.ndarray) -> np.ndarray | None:
        """(B,) how far a score of :meth:`block` may be from that of :meth:`chosen`; None if they are the same."""
        return None


class Vectors(Scorer):
    """Inner products of question and product vectors: fast in float32, exact in float64.

    Args:
        questions: (Q, D) vectors.
        products: (N, D) vectors.
        present: (N,) bool, which products have one; all if None.

    Raises:
        CatalignError: The widths differ, or a vector is not finite.
    """

    def __init__(self, questions: np.ndarray, products: np.ndarray, present: np.ndarray | None = None) -> None:
        if questions.ndim != 2 or products.ndim != 2 or questions.shape[1] != products.shape[1]:
            raise CatalignError(f"questions {questions.shape} and products {products.shape} are not of one width")
        self._questions, self._products = (np.ascontiguousarray(v, dtype=np.float32) for v in (questions, products))
        self.products = len(products)
        self._absent = _absent(present)
        for name, vectors in (("question", self._questions), ("product", self._products)):
            if not (finite := np.isfinite(vectors).all(axis=1)).all():
                raise CatalignError(f"the vector of {name} {int(np.argmin(finite))} has values that are not finite")
        self._longest = float(np.linalg.norm(self._products, axis=1).max(initial=0))

    def block(self, questions: np.ndarray) -> np.ndarray:
        """(B, N) float32."""
        # Not with torch, whose float32 products have the precision that some other part of the program asked for.
        scores = self._questions[questions] @ self._products.T
        scores[:, self._absent] = -np.inf
        return scores

    def chosen(self, questions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(B, n) float64, each pair computed by itself."""
        scores = np.empty(rows.shape)
        step = max(1, _EXACT_ELEMENTS // (rows.shape[1] * self._products.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            asked = self._questions[questions[part]].astype(np.float64)
            scores[part] = np.einsum("qd,qcd->qc", asked, self._products[rows[part]].astype(np.float64))
        scores[np.isin(rows, self._absent)] = -np.inf
        return scores

    def rounding(self, questions: np.ndarray) -> np.ndarray:
        """See :func:`catalign.retrieval.ranking.rounding`."""
        lengths = np.linalg.norm(self._questions[questions], axis=1).astype(np.float64)
        return rounding(self._products, np.float32) * self._longest * lengths


class Sparse(Scorer):
    """Inner products of sparse vectors.

    Args:
        questions: (Q, V).
        products: (V, N).
        present: (N,) bool, which products have one; all if None.
    """

    def __init__(self, questions: csr_matrix, products: csr_matrix, present: np.ndarray | None = None) -> None:
        self._questions, self._products, self.products = questions, products, products.shape[1]
        self._absent = _absent(present)

    def block(self, questions: np.ndarray) -> np.ndarray:
        """(B, N) in the matrices' own precision."""
        scores = np.asarray((self._questions[questions] @ self._products).toarray())
        scores[:, self._absent] = -np.inf
        return scores


class Fixed(Scorer):
    """The same scores for every question.

    Args:
        scores: (N,), such as how often each product was bought.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self._scores, self.products = np.asarray(scores, dtype=np.float64), len(scores)

    def block(self, questions: np.ndarray) -> np.ndarray:
        """(B, N) float64."""
        return np.tile(self._scores, (len(questions), 1))

    def chosen(self, questions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(B, n) float64."""
        return self._scores[rows]


def target_ranks(
    scorer: Scorer,
    targets: np.ndarray,
    *,
    hidden: Ragged | None = None,
    gallery: np.ndarray | None = None,
    negatives: np.ndarray | None = None,
) -> np.ndarray:
    """The rank of every question's target.

    Args:
        scorer: What ranks the products.
        targets: (Q,) product rows.
        hidden: Q rows of products that a question's ranking leaves out; a target is ranked even if it is among them.
        gallery: (N,) bool, the products that are ranked; all if None. Targets are ranked in any case.
        negatives: (Q, n) product rows: the target is ranked among these alone, and ``hidden`` and ``gallery`` are not
            looked at.

    Returns:
        (Q,) float64 ranks from 1; infinity for a target whose score is -inf.

    Raises:
        CatalignError: A target is no product, or lengths differ.
    """
    targets = np.asarray(targets, dtype=np.int64)
    if (outside := (targets < 0) | (targets >= scorer.products)).any():
        raise CatalignError(f"target {targets[outside][0]} is not a row of {scorer.products} products")
    for name, other in (("hidden", hidden), ("negatives", negatives)):
        if other is not None and len(other) != len(targets):
            raise CatalignError(f"{len(targets)} targets but {name} products of {len(other)} questions")
    ranks = np.empty(len(targets))
    left_out = _absent(gallery)
    chunk = max(1, _SCORES // scorer.products)
    for start in range(0, len(targets), chunk):
        questions = np.arange(start, min(start + chunk, len(targets)))
        if negatives is not None:
            ranks[questions] = _among(scorer, questions, targets[questions], negatives[questions])
        else:
            ranks[questions] = _among_all(scorer, questions, targets[questions], hidden, left_out)
    return ranks


def _absent(present: np.ndarray | None) -> np.ndarray:
    return np.zeros(0, dtype=np.int64) if present is None else np.flatnonzero(~present)


def _among(scorer: Scorer, questions: np.ndarray, targets: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    rows = np.concatenate([targets[:, None], negatives], axis=1)
    scores = scorer.chosen(questions, rows)
    own = scores[:, :1]
    better = (scores > own) | ((scores == own) & (rows < targets[:, None]))
    return _found(better.sum(axis=1), own[:, 0])


def _among_all(
    scorer: Scorer, questions: np.ndarray, targets: np.ndarray, hidden: Ragged | None, left_out: np.ndarray
) -> np.ndarray:
    scores, places = scorer.block(questions), np.arange(len(questions))
    error = scorer.rounding(questions)
    own = scores[places, targets] if error is None else scorer.chosen(questions, targets[:, None])[:, 0]
    scores[:, left_out] = -np.inf
    if hidden is not None:
        begin, end = hidden.offsets[questions[0]], hidden.offsets[questions[-1] + 1]
        scores[np.repeat(places, hidden.lengths_of(questions)), hidden.values[begin:end]] = -np.inf
    scores[places, targets] = -np.inf
    if error is None:
        better = (scores > own[:, None]).sum(axis=1)
        better += ((scores == own[:, None]) & (np.arange(scorer.products) < targets[:, None])).sum(axis=1)
        return _found(better, own)
    # What is surely better counts; what rounding might have put on either side is scored again, pair by pair.
    limit = np.where(np.isneginf(own), np.inf, own)  # a target that is never found needs no count
    highest = np.nextafter((limit + error).astype(np.float32), np.float32(np.inf))[:, None]
    lowest = np.nextafter((limit - error).astype(np.float32), np.float32(-np.inf))[:, None]
    surely = scores > highest
    question, near = np.nonzero((scores >= lowest) & ~surely)
    exact, target = scorer.chosen(questions[question], near[:, None])[:, 0], own[question]
    wins = (exact > target) | ((exact == target) & (near < targets[question]))
    return _found(surely.sum(axis=1) + np.bincount(question[wins], minlength=len(places)), own)


def _found(better: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.where(np.isneginf(own), np.inf, better + 1.0)
