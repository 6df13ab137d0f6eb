"""Stores of embeddings: memory-mapped vectors by name, product ids, who has what, and a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from catalign.artifacts import digest, read_json, sealed_folder, unseal, write_json
from catalign.errors import CatalignError, unknown

REMEDY = "make it again: catalign embed RUN"
FEATURES = "_features"
"""Ending of the names that hold an encoder's pooled output rather than aligned embeddings."""


class EmbeddingStore:
    """Vectors of a catalogue's products; row ``i`` is the catalogue's row ``i``. Open one with :meth:`open`.

    ``text`` and ``image`` are the aligned embeddings, of length 1 and of one width; ``text_features`` and
    ``image_features`` are the encoders' pooled outputs, for probes. Where a product lacks a modality its bit in
    :meth:`present` is False and its row holds zeros that nothing may read as data.

    Attributes:
        path: The folder.
        ids: N product ids.
        names: The vectors it holds.
        manifest: What they were made from: weights, config, data fingerprint.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], ids: list[str], present: np.ndarray) -> None:
        self.path, self.manifest, self.ids = path, manifest, ids
        self.names: list[str] = list(manifest["names"])
        self._present = present
        self._vectors = {n: np.load(path / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in self.names}

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> EmbeddingStore:
        """Open a store.

        Args:
            path: Its folder.
            verify: Compare every file with its checksum, not only its size.

        Raises:
            CatalignError: The folder is absent or unfinished, or a file in it was altered or does not fit.
        """
        path = Path(path)
        manifest = unseal(path, "embedding store", REMEDY, verify=verify)
        present = np.load(path / "present.npy", allow_pickle=False)
        store = cls(path, manifest, read_json(path / "ids.json"), present)
        if {len(store.ids), len(present), *(len(v) for v in store._vectors.values())} != {manifest["rows"]}:
            raise CatalignError(f"embedding store {path}: its files differ in their number of rows", REMEDY)
        return store

    @classmethod
    def write(
        cls,
        path: str | Path,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray | Iterable[np.ndarray]],
        present: Mapping[str, np.ndarray] | None = None,
        **manifest: Any,
    ) -> EmbeddingStore:
        """Write a store, all or nothing; :meth:`writing` without the block.

        Args:
            path: Where to; what is there is replaced.
            ids: N different product ids.
            vectors: By name, (N, D) or consecutive batches (B, D) of it.
            present: By name, (N,) bool; see :meth:`writing`.
            **manifest: What the vectors were made from.
        """
        with cls.writing(path, ids, list(vectors), present, **manifest) as writer:
            for name, given in vectors.items():
                for batch in [given] if isinstance(given, np.ndarray) else given:
                    writer.append(name, batch)
        return cls.open(path, verify=False)

    @classmethod
    @contextmanager
    def writing(
        cls,
        path: str | Path,
        ids: Sequence[str],
        names: Sequence[str],
        present: Mapping[str, np.ndarray] | None = None,
        **manifest: Any,
    ) -> Iterator[StoreWriter]:
        """A store to be filled batch by batch, which takes its place only when the block ends without an error.

        Args:
            path: Where to; what is there is replaced.
            ids: N different product ids.
            names: The arrays that will be written.
            present: By name, (N,) bool, True where the product has the modality. A name not given follows its
                modality (``text_features`` follows ``text``); where neither is given, every product has it.
            **manifest: What the vectors are made from.
        """
        with sealed_folder(path, rows=len(ids), names=list(names), **manifest) as folder:
            writer = StoreWriter(folder, ids, names, present or {})
            yield writer
            writer.finish()

    @property
    def modalities(self) -> list[str]:
        """The names that hold embeddings rather than features: what fusion fuses."""
        return [name for name in self.names if not name.endswith(FEATURES)]

    @property
    def digest(self) -> str:
        """Short hash of the contents, to tell what was made from this store."""
        return digest(self.manifest)

    def __getitem__(self, name: str) -> np.ndarray:
        """(N, D) float32, memory-mapped.

        Raises:
            CatalignError: No vectors of this name.
        """
        self._column(name)
        return self._vectors[name]

    def present(self, name: str) -> np.ndarray:
        """(N,) bool, True where the product has this modality."""
        return self._present[:, self._column(name)]

    def _column(self, name: str) -> int:
        if name not in self.names:
            raise unknown(f"vectors in {self.path}:", name, self.names)
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.ids)

    def _table(self) -> list[tuple[str, str, str]]:
        widths = {name: vectors.shape[1] for name, vectors in self._vectors.items()}
        return [(name, str(widths[name]), f"{self.present(name).mean():.1%}") for name in self.names]

    def __repr__(self) -> str:
        lines = [f"  {name}: width {width}, {share} of products" for name, width, share in self._table()]
        return "\n".join([f"EmbeddingStore {self.path} ({len(self)} products)", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(n)}</td><td>{w}</td><td>{s}</td></tr>" for n, w, s in self._table())
        head = "<tr><th>vectors</th><th>width</th><th>present</th></tr>"
        return f"<p>{len(self)} products in {escape(str(self.path))}</p><table>{head}{rows}</table>"


class StoreWriter:
    """Fills a store's arrays batch by batch; what :meth:`EmbeddingStore.writing` gives.

    Args:
        folder: The folder to fill.
        ids: N different product ids.
        names: The arrays to be written.
        present: By name, (N,) bool.

    Raises:
        CatalignError: No ids, an id given twice, or a mask of another length.
    """

    def __init__(
        self, folder: Path, ids: Sequence[str], names: Sequence[str], present: Mapping[str, np.ndarray]
    ) -> None:
        self._folder, self._ids, self._names = folder, [str(id) for id in ids], list(names)
        if not self._ids or not self._names:
            raise CatalignError("an embedding store of no products or no vectors", "is the split empty?")
        repeated = [id for id, count in Counter(self._ids).items() if count > 1]
        if repeated:
            raise CatalignError(f"product id {repeated[0]!r} is given twice ({len(repeated)} ids are)")
        self._present = {name: self._mask(name, present) for name in names}
        self._arrays: dict[str, np.memmap] = {}
        self._filled = dict.fromkeys(names, 0)

    def _mask(self, name: str, present: Mapping[str, np.ndarray]) -> np.ndarray:
        modality = name.removesuffix(FEATURES)
        mask = np.asarray(present.get(name, present.get(modality, np.ones(len(self._ids)))), dtype=bool)
        if mask.shape != (len(self._ids),):
            raise CatalignError(f"the mask of {name} has shape {mask.shape}, but there are {len(self._ids)} products")
        return mask

    def append(self, name: str, vectors: np.ndarray) -> None:
        """Add the next rows of one of the arrays.

        Args:
            name: One of the declared names.
            vectors: (B, D); D is fixed by a name's first batch.

        Raises:
            CatalignError: Another width than before, more rows than ids, or a value that is not finite where the
                product has the modality.
        """
        if name not in self._present:
            raise unknown("vectors", name, self._present)
        vectors = np.asarray(vectors, dtype=np.float32)
        start = self._filled[name]
        end = start + len(vectors)
        width = self._arrays[name].shape[1] if name in self._arrays else vectors.shape[-1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise CatalignError(f"{name} vectors have shape {vectors.shape}, not (B, {width})")
        if end > len(self._ids):
            raise CatalignError(f"{name} has more vectors ({end}) than there are products ({len(self._ids)})")
        if name not in self._arrays:
            file = self._folder / f"{name}.npy"
            self._arrays[name] = np.lib.format.open_memmap(file, "w+", np.float32, (len(self._ids), width))
        has = self._present[name][start:end]
        if not (finite := np.isfinite(vectors).all(axis=1) | ~has).all():
            raise CatalignError(
                f"the {name} vector of product {self._ids[start + int(np.argmin(finite))]!r} is not finite",
                "the model diverged or its input is broken: look at the training losses",
            )
        self._arrays[name][start:end] = np.where(has[:, None], vectors, 0)
        self._filled[name] = end

    def finish(self) -> None:
        """Check that every array is full, and write ids and masks.

        Raises:
            CatalignError: An array has fewer rows than there are products.
        """
        for name, rows in self._filled.items():
            if rows != len(self._ids):
                raise CatalignError(f"{name} has {rows} vectors, but there are {len(self._ids)} products")
            self._arrays[name].flush()
        np.save(self._folder / "present.npy", np.stack([self._present[name] for name in self._names], axis=1))
        write_json(self._folder / "ids.json", self._ids)
