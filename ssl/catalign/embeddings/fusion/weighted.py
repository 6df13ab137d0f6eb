"""A weighted sum of the modalities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from catalign.embeddings.fusion.base import Fusion
from catalign.errors import CatalignError, unknown
from catalign.registry import register

PUBLISHED: dict[str, float] = {"image": 0.9, "text": 0.1}
"""The document weights of the KAGL protocol (marqo-ai/marqo-FashionCLIP)."""


@register("fusion", "weighted")
class Weighted(Fusion):
    """normalised(sum of weight times vector), over the modalities that a product has.

    Args:
        weights: By modality, 0 or more, one of them above 0. A modality without a weight is not used.

    References:
        Zhu et al., Generalized Contrastive Learning for Multi-Modal Retrieval and Ranking, 2024 (the weights).
    """

    name = "weighted"

    def __init__(self, *, weights: dict[str, float] = PUBLISHED) -> None:
        super().__init__(weights=dict(weights))
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise CatalignError(f"fusion weights {weights}", "weights are 0 or more, and one of them above 0")

    def with_weights(self, weights: Mapping[str, float]) -> Weighted:
        """The same fusion with other weights; a modality that is not named keeps its own.

        Raises:
            CatalignError: A modality that the fusion does not know.
        """
        for name in weights:
            if name not in self.names:
                raise unknown("modality in weights", name, self.names)
        other = Weighted(weights={**self.options["weights"], **weights})
        other.names, other.widths, other.width = self.names, self.widths, self.width
        return other

    def _choose(self, available: list[str]) -> list[str]:
        chosen = [name for name in available if name in self.options["weights"]]
        if not chosen:
            raise unknown("modality in fusion.weights", next(iter(self.options["weights"])), available)
        return chosen

    def _learn(self, values: list[np.ndarray], mask: np.ndarray, groups: np.ndarray, progress: bool) -> None:
        self._one_width()

    def _fuse(self, values: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
        weights = mask * np.array([self.options["weights"][name] for name in self.names])
        # A product that has only what weighs nothing is still described by it.
        weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, mask).astype(np.float32)
        return np.einsum("bm,mbd->bd", weights, np.stack(values))
