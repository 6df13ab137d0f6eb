"""The one object for finding products: by words, by photo, by both, or by a product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from catalign.data.catalogue import Catalogue
from catalign.data.history_batches import BEHAVIOUR
from catalign.data.store import EmbeddingStore
from catalign.embeddings.extract import Embedder
from catalign.embeddings.fusion import Fusion
from catalign.embeddings.fusion.weighted import Weighted
from catalign.errors import CatalignError
from catalign.retrieval.index import Index
from catalign.retrieval.results import Hit, Results
from catalign.training.run import Run

Filters = Mapping[str, str | int | float | Iterable[str | int | float]]


class Retriever:
    """Finds products of a catalogue. Usually made with :meth:`from_run`.

    Args:
        catalogue: The products.
        store: Their embeddings.
        fusion: What joins the modalities of queries and products.
        index: An index of the fused products.
        embedder: Makes the model; called at the first query by text or image, so that others need no model.

    Raises:
        CatalignError: Store, fusion, index and catalogue are not of each other.

    Example:
        >>> retriever = Retriever.from_run("runs/fashion/seed0")  # doctest: +SKIP
        >>> retriever.search(text="red running shoes", filters={"gender": "Women"})  # doctest: +SKIP
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: EmbeddingStore,
        fusion: Fusion,
        index: Index,
        embedder: Callable[[], Embedder],
    ) -> None:
        self.catalogue, self.store, self.fusion, self.index = catalogue, store, fusion, index
        self._make_embedder = embedder
        self._embedder: Embedder | None = None
        if store.manifest.get("data") not in (None, catalogue.fingerprint):
            raise CatalignError(
                f"the embeddings in {store.path} are of another catalogue, or of this one as it was prepared before",
                "embed it again: catalign embed RUN",
            )
        if index.width != fusion.width:
            raise CatalignError(
                f"the index holds vectors of width {index.width}, but the run's fused embeddings have {fusion.width}",
                "build it again: catalign index RUN",
            )
        if index.manifest.get("embeddings") not in (None, store.digest):
            raise CatalignError("the index was built from other embeddings", "build it again: catalign index RUN")
        if index.manifest.get("fusion") not in (None, fusion.manifest.get("inputs")):
            raise CatalignError("the index was built with another fusion", "build it again: catalign index RUN")

    @classmethod
    def from_run(cls, run: Run | str | Path) -> Retriever:
        """The retriever of a run folder: its embeddings, fusion and index; the model is loaded when needed.

        Raises:
            CatalignError: The folder is no run, or embeddings, fusion or index are missing, unfinished or altered; the
                message names the command that makes them.
        """
        run = run if isinstance(run, Run) else Run.open(run)
        for folder, what, command in (
            ("embeddings", "embeddings", "embed"),
            ("fusion", "fitted fusion", "index"),
            ("index", "index", "index"),
        ):
            if not (run.path / folder).is_dir():
                raise CatalignError(f"run {run.path} has no {what}", f"make it: catalign {command} {run.path}")
        return cls(
            run.catalogue(),
            EmbeddingStore.open(run.path / "embeddings"),
            Fusion.load(run.path / "fusion"),
            Index.load(run.path / "index"),
            lambda: Embedder.from_run(run),
        )

    def __repr__(self) -> str:
        return f"Retriever({len(self.index)} products, fusion {self.fusion.name}, index {self.index.factory})"

    def search(
        self,
        text: str | None = None,
        image: Any = None,
        item: str | None = None,
        *,
        filters: Filters | None = None,
        k: int = 10,
        weights: Mapping[str, float] | None = None,
    ) -> Results:
        """The k products nearest to a query.

        Args:
            text: Words.
            image: A photo: path, encoded bytes, PIL image or (H, W, 3) uint8 array. With ``text``, both are fused.
            item: A product id, to find products like it; the product itself is left out.
            filters: Attribute values that a product must have: ``{"base_colour": ["Red", "Pink"], "gender": "Women"}``.
            k: Products to return.
            weights: Weights of text and image in this query, for the weighted fusion.

        Raises:
            CatalignError: No query, text without a known word, an image that isn't one, an unknown product, attribute
                or value, or weights for a fusion that has none.
        """
        k = _count(k)
        fusion = self._weighted(weights)
        if item is not None:
            if text is not None or image is not None:
                raise CatalignError("a query by item takes no text or image", "give the item alone, or text and image")
            query, itself = self._of_item(item, fusion), {str(item)}
        else:
            query, itself = self._of_query(text, image, fusion), set[str]()
        return self._found(query, k, itself, filters, _describe(text, image, item))

    def recommend(
        self,
        history: Iterable[str],
        *,
        k: int = 10,
        exclude_seen: bool = True,
        filters: Filters | None = None,
    ) -> Results:
        """The k products that someone with this history is most likely to want next.

        Args:
            history: Product ids, oldest first; of a long one the encoder reads the last ``max_length``.
            k: Products to return.
            exclude_seen: Leave out the products of the history.
            filters: As :meth:`search` takes.

        Raises:
            CatalignError: The run has no behaviour encoder, the history is empty or of products that training never
                saw, or a product, attribute or value is unknown.
        """
        k = _count(k)
        if isinstance(history, str):
            raise CatalignError(f"history {history!r} is one text", f"give a list of product ids: [{history!r}]")
        ids = [str(id) for id in history]
        if not ids:
            raise CatalignError("an empty history", "give the ids of products that the user bought or viewed")
        rows = np.array([self.catalogue.row(id) for id in ids])
        if BEHAVIOUR in self.store.names and not self.store.present(BEHAVIOUR)[rows].any():
            remedy = "give others; encoder.behaviour.items=content or both knows products by their text and photo"
            raise CatalignError("no product of this history is one that training knew", remedy)
        vector = self.embedder.histories([rows])
        query = self.fusion({BEHAVIOUR: vector}) if BEHAVIOUR in self.fusion.names else vector
        return self._found(query, k, set(ids) if exclude_seen else set(), filters, _after(ids))

    def browse(self, *, filters: Filters | None = None, k: int = 10) -> Results:
        """The first k products, in no order of merit: their score is NaN.

        Args:
            filters: As :meth:`search` takes.
            k: Products to return.

        Raises:
            CatalignError: An attribute or value is unknown.
        """
        allowed = self._allowed(filters or {})
        ids = self.index.ids if allowed is None else allowed
        return Results([self.hit(id) for id in ids[: _count(k)]], "products" + _describe_filters(filters))

    def hit(self, id: str, score: float = math.nan) -> Hit:
        """A product as results show it."""
        if id not in self.catalogue:  # added to the index after the catalogue was prepared
            return Hit(id, score)
        row = self.catalogue.row(id)
        attributes = {name: str(values[row]) for name, values in self.catalogue.attributes.items() if values[row]}
        photo = self.catalogue.thumbnail(row) if self.catalogue.has_image[row] else None
        return Hit(id, score, self.catalogue.text()[row], attributes, row, photo)

    def _found(self, query: np.ndarray, k: int, without: set[str], filters: Filters | None, title: str) -> Results:
        found, scores = self.index.search(query, k + len(without), self._allowed(filters or {}))
        pairs = [(id, score) for id, score in zip(found[0], scores[0].tolist(), strict=False) if id not in without]
        return Results([self.hit(id, score) for id, score in pairs[:k]], title + _describe_filters(filters))

    @property
    def embedder(self) -> Embedder:
        """The model; loaded when first asked for."""
        if self._embedder is None:
            self._embedder = self._make_embedder()
        return self._embedder

    def _of_query(self, text: str | None, image: Any, fusion: Fusion) -> np.ndarray:
        vectors = {}
        if text is not None:
            vectors["text"] = self.embedder.text([text])
        if image is not None:
            vectors["image"] = self.embedder.images([image])
        if not vectors:
            raise CatalignError("no query", "give a text, an image, both, or an item's id")
        return fusion(vectors)

    def _of_item(self, item: str, fusion: Fusion) -> np.ndarray:
        row = self.catalogue.row(str(item))
        names = [name for name in fusion.names if name in self.store.names]
        vectors = {name: np.asarray(self.store[name][row : row + 1]) for name in names}
        query = fusion(vectors, {name: self.store.present(name)[row : row + 1] for name in names})
        if not query.any():
            raise CatalignError(f"product {item!r} has neither a text nor a photo that was embedded")
        return query

    def _weighted(self, weights: Mapping[str, float] | None) -> Fusion:
        if weights is None:
            return self.fusion
        if not isinstance(self.fusion, Weighted):
            raise CatalignError(
                f"weights are for the weighted fusion, but this run's is {self.fusion.name}",
                "leave them out, or index the run with fusion=weighted",
            )
        return self.fusion.with_weights(weights)

    def _allowed(self, filters: Filters) -> list[str] | None:
        if not filters:
            return None
        keep = np.ones(len(self.catalogue), dtype=bool)
        for name, wanted in filters.items():
            keep &= self.catalogue.having(name, _values(wanted))
        return [id for id in np.array(self.catalogue.ids, dtype=object)[keep] if id in self.index]


def _count(k: int) -> int:
    if not isinstance(k, Integral) or k < 1:
        raise CatalignError(f"k is {k}", "ask for one product or more")
    return int(k)  # faiss takes no integers of NumPy


def _after(ids: Sequence[str]) -> str:
    """A title that names the last five products of a history."""
    before = f" and {len(ids) - 5} before" if len(ids) > 5 else ""
    return f"after {', '.join(ids[-5:])}{before}"


def _values(wanted: str | int | float | Iterable[str | int | float]) -> list[str]:
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        return [str(wanted)]
    return [str(value) for value in wanted]


def _describe(text: str | None, image: Any, item: str | None) -> str:
    parts = [f'"{text}"'] if text is not None else []
    if image is not None:
        parts.append(f"photo {image}" if isinstance(image, str | Path) else "a photo")
    if item is not None:
        parts.append(f"like product {item}")
    return " + ".join(parts)


def _describe_filters(filters: Filters | None) -> str:
    chosen = [f"{name}: {', '.join(_values(wanted))}" for name, wanted in (filters or {}).items()]
    return f" ({'; '.join(chosen)})" if chosen else ""
