"""Metrics of rankings that look for one product each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from catalign.data.interactions import Cases
from catalign.data.ragged import Ragged
from catalign.evaluation.base import Metrics
from catalign.retrieval.targets import Scorer, target_ranks


@dataclass(frozen=True)
class Trial:
    """What is asked and ranked.

    Attributes:
        name: The catalogue's name, which keys begin with.
        cases: C questions and their targets.
        hidden: C rows of products that a ranking leaves out; None for none.
        gallery: (N,) bool, the products that are ranked.
        negatives: (C, n) products to rank a target among, instead of the gallery; None for the gallery.
        groups: By name, which cases (C,) are reported by themselves too.
        ks: Cut-offs.
    """

    name: str
    cases: Cases
    hidden: Ragged | None
    gallery: np.ndarray
    negatives: np.ndarray | None
    groups: dict[str, np.ndarray]
    ks: Sequence[int]

    def ranks(self, scorer: Scorer) -> np.ndarray:
        """(C,) float64 ranks of the targets."""
        targets = self.cases.targets
        return target_ranks(scorer, targets, hidden=self.hidden, gallery=self.gallery, negatives=self.negatives)

    def metrics(self, ranks: np.ndarray) -> Metrics:
        """Metrics of ranks (C,)."""
        return self._keyed(rank_metrics, ranks)

    def random(self) -> Metrics:
        """Metrics expected of random rankings."""
        return self._keyed(random_rank_metrics, self.sizes())

    def _keyed(self, measure: Callable[[np.ndarray, Sequence[int]], dict[str, float]], values: np.ndarray) -> Metrics:
        """A measure of all cases, and without MRR of every group that has a case."""
        metrics = {f"{self.name}/{key}": value for key, value in measure(values, self.ks).items()}
        for group, chosen in self.groups.items():
            some = measure(values[chosen], self.ks) if chosen.any() else {}
            metrics |= {f"{self.name}/{group}/{key}": some[key] for key in some if not key.startswith("mrr")}
        return dict(metrics)

    def sizes(self) -> np.ndarray:
        """(C,) number of products ranked, the target among them."""
        if self.negatives is not None:
            return np.full(len(self.cases), 1 + self.negatives.shape[1])
        sizes = np.full(len(self.cases), np.count_nonzero(self.gallery))
        if self.hidden is not None:
            case = np.repeat(np.arange(len(self.cases)), self.hidden.lengths)
            left_out = self.gallery[self.hidden.values] & (self.hidden.values != self.cases.targets[case])
            pairs = np.unique(case[left_out] * len(self.gallery) + self.hidden.values[left_out])
            sizes -= np.bincount(pairs // len(self.gallery), minlength=len(sizes))
        return sizes


def rank_metrics(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Metrics of a single target per question, averaged over the questions.

    Args:
        ranks: (Q,) ranks from 1, infinity for a target that is never found.
        ks: Cut-offs.

    Returns:
        ``hr@k`` (the target is in the top k), ``ndcg@k`` (1 / log2(rank + 1) if it is), ``mrr@k`` (1 / rank if it is)
        and ``mrr`` (without a cut).
    """
    metrics = {}
    for k in ks:
        found = ranks <= k
        metrics[f"hr@{k}"] = float(found.mean())
        metrics[f"ndcg@{k}"] = float((found / np.log2(ranks + 1)).mean())
        metrics[f"mrr@{k}"] = float((found / ranks).mean())
    return {**metrics, "mrr": float((1 / ranks).mean())}


def random_rank_metrics(sizes: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """:func:`rank_metrics` expected of random rankings, in closed form.

    Args:
        sizes: (Q,) the number of products ranked for each question, the target among them.
        ks: Cut-offs.
    """
    ranks = np.arange(1, sizes.max() + 1)
    discounts, reciprocals = np.cumsum(1 / np.log2(ranks + 1)), np.cumsum(1 / ranks)
    metrics = {}
    for k in ks:
        top = np.minimum(k, sizes)
        metrics[f"hr@{k}"] = float((top / sizes).mean())
        metrics[f"ndcg@{k}"] = float((discounts[top - 1] / sizes).mean())
        metrics[f"mrr@{k}"] = float((reciprocals[top - 1] / sizes).mean())
    return {**metrics, "mrr": float((reciprocals[sizes - 1] / sizes).mean())}
