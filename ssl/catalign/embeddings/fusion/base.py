"""What every fusion is: fitted on stored vectors, aware of what is missing, saved as safetensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from catalign import registry
from catalign.artifacts import sealed_folder, unseal
from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError, unknown

REMEDY = "fit it again: catalign index RUN"
_BATCH = 8192


class Fusion(ABC):
    """Turns the modalities of a product into one vector of length 1, from any subset of them.

    A modality that a product lacks is a mask bit: whatever its vector holds is ignored. A subclass says how it fuses in
    :meth:`_fuse` and, if it learns, in :meth:`_learn`, :meth:`_state` and :meth:`_restore`.

    Args:
        **options: The options to build it with again.

    Attributes:
        name: The name it is registered under.
        names: The modalities it was fitted on, in order.
        widths: Their widths.
        width: D' of the fused vectors.
        manifest: What was recorded when it was saved; empty for a fusion that was not.
    """

    name: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.names: list[str] = []
        self.widths: list[int] = []
        self.width = 0
        self.manifest: dict[str, Any] = {}

    def fit(
        self,
        vectors: Mapping[str, np.ndarray],
        present: Mapping[str, np.ndarray] | None = None,
        groups: np.ndarray | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn what is to be learned.

        Args:
            vectors: By modality, (N, D) vectors of length 1.
            present: By modality, (N,) bool; every product has a modality that is not named.
            groups: (N,) products of one number are one product; all are different if None.
            progress: Show a progress bar where it takes long.

        Raises:
            CatalignError: There is nothing to fuse, or the shapes do not fit each other.
        """
        self.names = self._choose(list(vectors))
        self.widths = [vectors[name].shape[1] for name in self.names]
        values, mask = self._gather({name: vectors[name] for name in self.names}, present or {})
        some = mask.any(axis=1)
        if not some.any():
            raise CatalignError("no product has anything to fuse", "is the split empty?")
        numbers = np.arange(len(mask)) if groups is None else np.asarray(groups)
        self._learn([value[some] for value in values], mask[some], numbers[some], progress)
        first = np.flatnonzero(some)[:1]
        self.width = self._fuse([value[first] for value in values], mask[first]).shape[1]
        return self

    def __call__(
        self, vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Fuse.

        Args:
            vectors: By modality, (N, D); a modality that is not named is missing everywhere.
            present: By modality, (N,) bool; every product has a modality that is not named.

        Returns:
            (N, D') float32 of length 1; zeros for a product that has nothing.

        Raises:
            CatalignError: An unknown modality or another width than it was fitted on.
        """
        if not self.width:
            raise CatalignError(f"the {self.name} fusion is not fitted", REMEDY)
        values, mask = self._gather(vectors, present or {})
        fused = np.zeros((len(mask), self.width), dtype=np.float32)
        for start in range(0, len(mask), _BATCH):
            rows = start + np.flatnonzero(mask[start : start + _BATCH].any(axis=1))
            fused[rows] = normalised(self._fuse([value[rows] for value in values], mask[rows]))
        return fused

    def _gather(
        self, vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        for name in vectors:
            if name not in self.names:
                raise unknown(f"modality of the {self.name} fusion", name, self.names)
        lengths = {len(value) for value in vectors.values()}
        if len(lengths) != 1:
            raise CatalignError(f"vectors to fuse have {sorted(lengths)} rows: they must be of the same products")
        (rows,) = lengths
        values, mask = [], np.zeros((rows, len(self.names)), dtype=bool)
        for column, (name, width) in enumerate(zip(self.names, self.widths, strict=True)):
            value = vectors.get(name)
            if value is not None:
                if value.ndim != 2 or value.shape[1] != width:
                    raise CatalignError(
                        f"{name} vectors of shape {value.shape}; the fusion takes width {width}", REMEDY
                    )
                mask[:, column] = present.get(name, True)
            blank = np.zeros((rows, width), dtype=np.float32)
            values.append(blank if value is None else np.where(mask[:, column, None], value, blank))
        return values, mask

    def _choose(self, available: list[str]) -> list[str]:
        """The modalities to use, of those available, in their order."""
        if not available:
            raise CatalignError("there are no vectors to fuse")
        return available

    def _one_width(self) -> None:
        if len(set(self.widths)) > 1:
            found = ", ".join(f"{name} {width}" for name, width in zip(self.names, self.widths, strict=True))
            raise CatalignError(
                f"the {self.name} fusion needs vectors of one space, but the widths are {found}",
                "align the encoders first (a stage with the contrastive objective), or use fusion=concat",
            )

    @abstractmethod
    def _fuse(self, values: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
        """(B, D') from vectors (B, D) per modality, zeros where missing, and a mask (B, M) with some of a row True."""

    def _learn(self, values: list[np.ndarray], mask: np.ndarray, groups: np.ndarray, progress: bool) -> None:
        """Learn from what :meth:`_fuse` takes; a fusion without parameters has nothing to do."""
        return

    def _state(self) -> dict[str, np.ndarray]:
        """What was learned."""
        return {}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        """Take back what :meth:`_state` gave."""
        return

    def save(self, folder: str | Path, **meta: Any) -> None:
        """Write options and weights, all or nothing."""
        facts = {key: getattr(self, key) for key in ("name", "options", "names", "widths", "width")}
        with sealed_folder(folder, **facts, **meta) as temporary:
            # safetensors writes the bytes as they lie, so an array in column order would come back scrambled.
            state = {key: np.ascontiguousarray(value) for key, value in self._state().items()}
            save_file(state, temporary / "weights.safetensors")

    @staticmethod
    def load(folder: str | Path, verify: bool = True) -> Fusion:
        """Read any fusion that :meth:`save` wrote.

        Raises:
            CatalignError: The folder is absent or unfinished, or a file in it was altered.
        """
        manifest = unseal(folder, "fusion", REMEDY, verify=verify)
        fusion: Fusion = registry.build("fusion", manifest["name"], where=str(folder), **manifest["options"])
        fusion.names, fusion.widths, fusion.width = (manifest[key] for key in ("names", "widths", "width"))
        fusion.manifest = manifest
        fusion._restore(load_file(Path(folder) / "weights.safetensors"))
        return fusion


def fuse_store(fusion: Fusion, store: EmbeddingStore) -> tuple[np.ndarray, np.ndarray]:
    """Fuse all products of a store.

    Returns:
        (N, D') float32 of length 1, and (N,) bool: False for products that have nothing, whose row is zeros.
    """
    names = [name for name in fusion.names if name in store.names]
    if not names:
        raise CatalignError(
            f"{store.path} has {', '.join(store.names)}, the fusion needs {', '.join(fusion.names)}", REMEDY
        )
    fused = np.empty((len(store), fusion.width), dtype=np.float32)
    for start in range(0, len(store), _BATCH):
        part = slice(start, start + _BATCH)
        fused[part] = fusion({n: store[n][part] for n in names}, {n: store.present(n)[part] for n in names})
    return fused, np.any([store.present(name) for name in names], axis=0)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
