"""A catalogue of a few rows in memory, and a context over vectors that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion.weighted import Weighted
from catalign.evaluation.base import Context
from catalign.testing import ToyCatalogue


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
