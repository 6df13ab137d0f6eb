"""A retriever on coloured squares, by a model that knows colours by heart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.embeddings.extract import Embedder
from catalign.embeddings.fusion import fuse_store
from catalign.embeddings.fusion.concat import Concat
from catalign.retrieval.index import Index
from catalign.retrieval.retriever import Retriever
from toy_products import ToyModel, make_catalogue


def _retriever_of(catalogue: Catalogue, store: EmbeddingStore, embedder: Embedder) -> Retriever:
    """The retriever of a store, with text and image side by side."""
    fusion = Concat().fit({n: store[n] for n in store.modalities}, {n: store.present(n) for n in store.modalities})
    vectors, some = fuse_store(fusion, store)
    index = Index.build(vectors[some], np.array(store.ids, dtype=object)[some].tolist())
    return Retriever(catalogue, store, fusion, index, lambda: embedder)


@pytest.fixture(scope="session")
def retriever_of() -> Callable[..., Retriever]:
    return _retriever_of


@pytest.fixture(scope="session")
def toys_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="session")
def toys(toys_folder: Path) -> Retriever:
    catalogue = make_catalogue(toys_folder)
    embedder = Embedder(ToyModel(catalogue), catalogue)
    return _retriever_of(catalogue, embedder.catalogue(catalogue, toys_folder / "store", progress=False), embedder)
