"""A catalogue of a few rows in memory, and a context over vectors that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion.weighted import Weighted
from catalign.evaluation.base import Context


@dataclass
class ToyCatalogue:
    titles: list[str]
    splits: np.ndarray
    groups: np.ndarray
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    has_image: np.ndarray | None = None
    has_text: np.ndarray | None = None
    histories: Any = None
    name: str = "toy"
    fingerprint: str = "toy"

    def __post_init__(self) -> None:
        count = len(self.titles)
        self.ids = [f"p{row}" for row in range(count)]
        self.fields = {"title": 1.0}
        self.images = np.random.default_rng(0).integers(0, 256, (count, 16, 12, 3), dtype=np.uint8)
        self.has_image = np.ones(count, bool) if self.has_image is None else self.has_image
        self.has_text = np.ones(count, bool) if self.has_text is None else self.has_text

    def __len__(self) -> int:
        return len(self.titles)

    def text(self, name: str) -> list[str]:
        return self.titles

    def rows(self, *splits: str, share: float = 1.0) -> np.ndarray:
        return np.flatnonzero(np.isin(self.splits, splits))


class Words:
    """Embeds a text as the vector a test gave it."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors = vectors

    def text(self, texts: list[str]) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def catalogue() -> Callable[..., ToyCatalogue]:
    def make(titles: list[str], split: str | list[str] = "test", groups: Any = None, **given: Any) -> ToyCatalogue:
        splits = np.array([split] * len(titles) if isinstance(split, str) else split)
        return ToyCatalogue(titles, splits, np.arange(len(titles)) if groups is None else np.array(groups), **given)

    return make


@pytest.fixture
def context(tmp_path) -> Callable[..., Context]:
    def make(catalogue: ToyCatalogue, vectors: dict[str, Any], untrained: Any = None, **given: Any) -> Context:
        present = {"image": catalogue.has_image, "text": catalogue.has_text}
        stores = []
        for place, arrays in enumerate((vectors, untrained)):
            arrays = {name: np.asarray(array, dtype=np.float32) for name, array in (arrays or {}).items()}
            path = tmp_path / f"store{place}"
            stores.append(EmbeddingStore.write(path, catalogue.ids, arrays, present) if arrays else None)
        aligned = {name: stores[0][name] for name in stores[0].modalities}
        fusion = Weighted(weights={"image": 0.5, "text": 0.5}).fit(aligned) if aligned else None
        return Context(
            **{"catalogue": catalogue, "store": stores[0], "untrained": stores[1], "fusion": fusion, **given}
        )

    return make


@pytest.fixture
def words() -> type[Words]:
    return Words


@pytest.fixture
def unit_rows() -> Callable[[np.ndarray], np.ndarray]:
    return unit
