"""The modalities side by side, reduced by PCA if wished."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from catalign.embeddings.fusion.base import Fusion
from catalign.errors import CatalignError
from catalign.registry import register


@register("fusion", "concat")
class Concat(Fusion):
    """Blocks of sqrt(weight) times vector, so that an inner product is the weighted sum of the blocks' cosines.

    A missing block is filled with the mean of the products that have it: it then says nothing about the product.

    Args:
        weights: By modality, above 0; 1 for a modality that is not named.
        pca: Dimensions to keep, by principal components of the fitted products; all dimensions if None.
    """

    name = "concat"

    def __init__(self, *, weights: dict[str, float] | None = None, pca: int | None = None) -> None:
        super().__init__(weights=dict(weights or {}), pca=pca)
        if min((weights or {"any": 1}).values()) <= 0 or (pca is not None and pca < 1):
            raise CatalignError(f"fusion weights {weights}, pca {pca}", "both must be above 0")
        self._means: list[np.ndarray] = []
        self._components: np.ndarray | None = None

    def _learn(self, values: list[np.ndarray], mask: np.ndarray, groups: np.ndarray, progress: bool) -> None:
        del groups, progress
        has = [mask[:, column] for column in range(len(values))]
        self._means = [
            v[h].mean(axis=0) if h.any() else np.zeros(v.shape[1], np.float32) for v, h in zip(values, has, strict=True)
        ]
        self._components = None
        if (pca := self.options["pca"]) is not None:
            blocks = self._fuse(values, mask)
            if pca > min(blocks.shape):
                raise CatalignError(
                    f"fusion.pca {pca} is above {min(blocks.shape)}", "the data allow no more dimensions"
                )
            fitted = PCA(pca, svd_solver="covariance_eigh").fit(blocks)
            self._components = np.ascontiguousarray(np.vstack([fitted.mean_, fitted.components_]), dtype=np.float32)

    def _fuse(self, values: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
        blocks = np.concatenate(
            [
                np.where(mask[:, column, None], value, mean) * np.float32(self.options["weights"].get(name, 1.0) ** 0.5)
                for column, (name, value, mean) in enumerate(zip(self.names, values, self._means, strict=True))
            ],
            axis=1,
        )
        return blocks if self._components is None else (blocks - self._components[0]) @ self._components[1:].T

    def _state(self) -> dict[str, np.ndarray]:
        state = {f"mean.{name}": mean for name, mean in zip(self.names, self._means, strict=True)}
        return state if self._components is None else {**state, "pca": self._components}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self._means = [state[f"mean.{name}"] for name in self.names]
        self._components = state.get("pca")
