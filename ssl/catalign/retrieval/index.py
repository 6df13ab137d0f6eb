"""A FAISS index of product vectors under the products' own ids."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from catalign.artifacts import read_json, sealed_folder, unseal, write_json
from catalign.errors import CatalignError
from catalign.retrieval import parts
from catalign.retrieval.ranking import ranked


class Index:
    """Nearest products by inner product (cosine similarity, for normalised vectors).

    FAISS (Douze et al. 2024) numbers vectors; a product gets a number when it is added, and a number is never given
    twice, so a removed product cannot come back under another's name. Make one with :meth:`build` or :meth:`load`.

    Attributes:
        factory: The FAISS factory string.
        width: D of the vectors.
        manifest: What was recorded when it was saved; empty for an index that was not.
    """

    def __init__(self, index: faiss.Index, factory: str, labels: dict[str, int], next_label: int) -> None:
        self._index, self.factory, self.manifest = index, factory, dict[str, Any]()
        self._labels, self._next = labels, next_label
        self._ids = {label: id for id, label in labels.items()}
        self._build_seconds = 0.0
        self._placed: faiss.Index | None = None

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        ids: Sequence[str],
        factory: str = "Flat",
        *,
        nprobe: int | None = None,
        ef_search: int | None = None,
        train: np.ndarray | None = None,
    ) -> Index:
        """Train an index where it needs training, and add all vectors.

        Args:
            vectors: (N, D) vectors, N > 0.
            ids: N different product ids.
            factory: A FAISS factory string: ``"Flat"`` is exact, ``"SQ8"`` a quarter of its size, ``"IVF256,Flat"``
                and ``"HNSW32"`` are fast on large catalogues.
            nprobe: Lists visited by an IVF index; FAISS' default if None.
            ef_search: Candidates kept by an HNSW index; FAISS' default if None.
            train: (M, D) training vectors, if other than ``vectors``.

        Raises:
            CatalignError: FAISS does not know the factory string, or it needs more training vectors.
        """
        vectors = parts.matrix(vectors, None)
        if not len(vectors):
            raise CatalignError("an index of no products", "add embeddings first: catalign embed RUN")
        start = time.perf_counter()
        factory = factory.removeprefix("IDMap2,").removeprefix("IDMap,")
        index = parts.make(vectors.shape[1], factory)
        parts.tune(index, factory, nprobe, ef_search)
        parts.train(index, factory, vectors if train is None else parts.matrix(train, vectors.shape[1]))
        built = cls(index, factory, {}, 0)
        built.add(ids, vectors)
        built._build_seconds = time.perf_counter() - start
        return built

    @property
    def width(self) -> int:
        """D of the vectors."""
        return int(self._index.d)

    @property
    def ids(self) -> list[str]:
        """The products, in the order they were added."""
        return list(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, id: object) -> bool:
        return id in self._labels

    def __repr__(self) -> str:
        return f"Index({self.factory!r}, {len(self)} products, width {self.width})"

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add products.

        Args:
            ids: n product ids, none of them in the index.
            vectors: (n, D) vectors.

        Raises:
            CatalignError: Another width, other numbers of ids and vectors, a value that is not finite, or an id that
                is given twice or already there.
        """
        vectors = parts.matrix(vectors, self.width)
        if len(ids) != len(vectors):
            raise CatalignError(f"{len(ids)} ids but {len(vectors)} vectors")
        seen: set[str] = set()
        for id in ids:
            if id in self._labels or id in seen:
                where = "is in the index already" if id in self._labels else "is given twice"
                raise CatalignError(f"product id {id!r} {where}", "use replace() to change a product's vector")
            seen.add(id)
        labels = np.arange(self._next, self._next + len(ids), dtype=np.int64)
        self._index.add_with_ids(vectors, labels)
        self._labels.update(zip(ids, labels.tolist(), strict=True))
        self._ids.update(zip(labels.tolist(), ids, strict=True))
        self._next += len(ids)
        self._placed = None

    def remove(self, ids: Iterable[str]) -> None:
        """Remove products.

        Raises:
            CatalignError: An unknown id, or a kind of index that cannot remove (HNSW).
        """
        gone = list(dict.fromkeys(ids))
        labels = self._numbers(gone)
        try:
            self._index.remove_ids(faiss.IDSelectorBatch(labels))
        except RuntimeError:
            raise CatalignError(
                f"an index of factory {self.factory!r} cannot remove products",
                "build it again without them, or use a Flat, SQ8 or IVF factory",
            ) from None
        for id in gone:
            del self._ids[self._labels.pop(id)]
        self._placed = None

    def replace(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Give products new vectors.

        Raises:
            CatalignError: As :meth:`remove` and :meth:`add`; nothing is removed when the vectors are unusable.
        """
        vectors = parts.matrix(vectors, self.width)
        if len(set(ids)) != len(vectors):
            raise CatalignError(f"{len(set(ids))} different ids but {len(vectors)} vectors")
        self.remove(ids)
        self.add(ids, vectors)

    def search(
        self, queries: np.ndarray, k: int = 10, allowed: Iterable[str] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """The k nearest products of every query.

        Args:
            queries: (Q, D) vectors.
            k: Products per query; clipped to the products there are.
            allowed: Search among these ids alone.

        Returns:
            Q lists of ids, best first, and (Q, k) float32 scores. An approximate index that does not find k looks again
            at everything; should it still miss some, the list is shorter and the scores end in -inf.

        Raises:
            CatalignError: Another width, k below 1, an unknown id, or a kind of index that cannot filter.
        """
        queries = parts.matrix(queries, self.width)
        numbers = None if allowed is None else self._numbers(list(dict.fromkeys(allowed)))
        if k < 1:
            raise CatalignError(f"k is {k}", "ask for at least one product")
        k = min(k, len(self) if numbers is None else len(numbers))
        if k == 0 or not len(queries):
            return [[] for _ in queries], np.empty((len(queries), 0), dtype=np.float32)
        scores, labels = self._search(queries, k, numbers, everything=False)
        if (labels < 0).any():
            scores, labels = self._search(queries, k, numbers, everything=True)
        scores[labels < 0] = -np.inf
        return [[self._ids[label] for label in row if label >= 0] for row in labels.tolist()], scores

    def _search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, everything: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        if allowed is None and not everything:
            return self._device().search(queries, k)
        parameters = parts.search_parameters(self._index, allowed, everything)
        try:
            return self._index.search(queries, k, params=parameters)
        except RuntimeError:
            raise CatalignError(
                f"an index of factory {self.factory!r} cannot search among some products only",
                "use a Flat, SQ8, IVF or HNSW factory",
            ) from None

    def _device(self) -> faiss.Index:
        if self._placed is None:
            self._placed = self._index
            if faiss.get_num_gpus() > 0:
                with suppress(RuntimeError):  # kinds without a GPU form, such as HNSW, search on the CPU
                    self._placed = faiss.index_cpu_to_all_gpus(self._index)
        return self._placed

    def _numbers(self, ids: list[str]) -> np.ndarray:
        for id in ids:
            if id not in self._labels:
                close = difflib.get_close_matches(id, self._labels, n=1, cutoff=0.0)
                raise CatalignError(
                    f"product id {id!r} is not in the index",
                    f"did you mean {close[0]!r}? it has {len(self)} products" if close else "the index is empty",
                )
        return np.array([self._labels[id] for id in ids], dtype=np.int64)

    def save(self, folder: str | Path, **meta: Any) -> None:
        """Write the index, its ids and a manifest, all or nothing.

        Args:
            folder: Where to; what is there is replaced.
            **meta: Further entries of the manifest, such as the digest of the embeddings.
        """
        kept: dict[str, Any] = {"next": self._next, "labels": self._labels}
        facts = {"factory": self.factory, "width": self.width, "products": len(self)}
        with sealed_folder(folder, **facts, build_seconds=self._build_seconds, **meta) as temporary:
            faiss.write_index(self._index, str(temporary / "index.faiss"))
            write_json(temporary / "ids.json", kept)

    @classmethod
    def load(cls, folder: str | Path, verify: bool = True) -> Index:
        """Read what :meth:`save` wrote.

        Raises:
            CatalignError: The folder is absent or unfinished, or a file in it was altered.
        """
        folder = Path(folder)
        manifest = unseal(folder, "index", parts.REMEDY, verify=verify)
        kept = read_json(folder / "ids.json")
        try:
            index = faiss.read_index(str(folder / "index.faiss"))
        except RuntimeError as error:
            raise CatalignError(
                f"index {folder} cannot be read: {str(error).rsplit(': ', 1)[-1]}", parts.REMEDY
            ) from None
        loaded = cls(index, manifest["factory"], kept["labels"], kept["next"])
        if index.ntotal != len(loaded):
            raise CatalignError(f"index {folder}: {index.ntotal} vectors but {len(loaded)} ids", parts.REMEDY)
        loaded.manifest, loaded._build_seconds = manifest, manifest["build_seconds"]
        return loaded

    def report(self, queries: np.ndarray, vectors: np.ndarray, k: int = 10) -> dict[str, float]:
        """How good, fast and large the index is, against exact search.

        Args:
            queries: (Q, D) vectors.
            vectors: (N, D) the vectors it holds, in the order of :attr:`ids`; a quantised index has lost them.
            k: Products per query.

        Returns:
            ``recall`` (share of the exact k nearest that it finds; any product as near as the k-th counts), ``qps``
            (queries per second in one batch), ``ms`` (milliseconds of a query alone), ``megabytes``,
            ``exact_megabytes``, ``build_seconds``, ``products`` and ``k``.
        """
        queries, vectors = parts.matrix(queries, self.width), parts.matrix(vectors, self.width)
        if len(vectors) != len(self):
            raise CatalignError(f"the index has {len(self)} products, but {len(vectors)} vectors were given")
        self.search(queries[:1], k)  # the first search pays for start-up
        start = time.perf_counter()
        found, _ = self.search(queries, k)
        seconds = time.perf_counter() - start
        alone = queries[:100]
        start = time.perf_counter()
        for query in alone:
            self.search(query[None], k)
        milliseconds = (time.perf_counter() - start) / len(alone) * 1000
        _, exact = ranked(queries, vectors, k)
        row = {id: number for number, id in enumerate(self._labels)}
        good = 0
        for query, ids, last in zip(queries, found, exact[:, -1], strict=True):
            scores = vectors[[row[id] for id in ids]].astype(np.float64) @ query.astype(np.float64)
            good += int((scores >= last - 1e-6).sum())
        return {
            "recall": good / exact.size,
            "qps": len(queries) / seconds,
            "ms": milliseconds,
            "megabytes": faiss.serialize_index(self._index).nbytes / 1e6,
            "exact_megabytes": vectors.nbytes / 1e6,
            "build_seconds": self._build_seconds,
            "products": len(self),
            "k": exact.shape[1],
        }
