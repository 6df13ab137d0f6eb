"""Stores: written whole or not at all, checked both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError

IDS = [f"p{row}" for row in range(50)]


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"text": rng.normal(size=(50, 8)).astype("f4"), "text_features": rng.normal(size=(50, 12)).astype("f4")}


def test_round_trip(tmp_path: Path, vectors: dict[str, np.ndarray]) -> None:
    has = np.arange(50) % 5 > 0
    vectors["text"][0] = np.nan  # row 0 has no text, so what a model said of it does not matter
    store = EmbeddingStore.write(tmp_path / "store", IDS, vectors, {"text": has}, weights="abc")
    for opened in (store, EmbeddingStore.open(tmp_path / "store")):
        assert (opened.ids, opened.names, opened.modalities) == (IDS, ["text", "text_features"], ["text"])
        assert opened.manifest["weights"] == "abc"
        assert isinstance(opened["text"], np.memmap)
        np.testing.assert_array_equal(opened["text"][has], vectors["text"][has])
        assert not opened["text"][~has].any(), "absent rows hold zeros"
        np.testing.assert_array_equal(opened.present("text"), has)
        np.testing.assert_array_equal(opened.present("text_features"), has)  # features follow their modality
    assert "text: width 8, 80.0% of products" in repr(store)
    assert "<td>text_features</td><td>12</td>" in store._repr_html_()


def test_batches_make_the_same_files(tmp_path: Path, vectors: dict[str, np.ndarray]) -> None:
    whole = EmbeddingStore.write(tmp_path / "whole", IDS, vectors)
    batches = {name: iter([array[start : start + 7] for start in range(0, 50, 7)]) for name, array in vectors.items()}
    parts = EmbeddingStore.write(tmp_path / "parts", IDS, batches)
    assert whole.manifest == parts.manifest
    assert whole.digest == parts.digest
    other = EmbeddingStore.write(tmp_path / "other", IDS, {"text": vectors["text"] + 1})
    assert other.digest != whole.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["text"].__setitem__((3, 1), np.nan), "text vector of product 'p3' is not finite"),
        (lambda v: v["text"].__setitem__((4, 0), np.inf), "text vector of product 'p4' is not finite"),
        (lambda v: v.update(text=v["text"][:-1]), "text has 49 vectors, but there are 50 products"),
        (lambda v: v.update(text=np.concatenate([v["text"], v["text"]])), r"more vectors \(100\)"),
        (lambda v: v.update(text=iter([v["text"][:9], v["text"][9:, :5]])), r"shape \(41, 5\), not \(B, 8\)"),
        (lambda v: v.update(text=np.zeros(50)), r"shape \(50,\)"),
        (lambda v: v.clear(), "no products or no vectors"),
    ],
)
def test_a_failed_write_leaves_the_old_store(tmp_path: Path, vectors: dict, change, message: str) -> None:
    EmbeddingStore.write(tmp_path / "store", IDS, {"text": np.ones((50, 2))})
    change(vectors)
    with pytest.raises(CatalignError, match=message):
        EmbeddingStore.write(tmp_path / "store", IDS, vectors)
    assert (EmbeddingStore.open(tmp_path / "store")["text"] == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["store"], "nothing temporary is left"


def test_ids_and_masks_are_checked(tmp_path: Path, vectors: dict[str, np.ndarray]) -> None:
    with pytest.raises(CatalignError, match="'p1' is given twice"):
        EmbeddingStore.write(tmp_path / "store", ["p1", *IDS[1:]], vectors)
    with pytest.raises(CatalignError, match="no products"):
        EmbeddingStore.write(tmp_path / "store", [], vectors)
    with pytest.raises(CatalignError, match=r"mask of text has shape \(3,\)"):
        EmbeddingStore.write(tmp_path / "store", IDS, vectors, {"text": np.ones(3)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["text.npy", "present.npy", "ids.json"])
def test_altered_files_are_refused_by_name(tmp_path: Path, vectors: dict[str, np.ndarray], name: str) -> None:
    EmbeddingStore.write(tmp_path / "store", IDS, vectors)
    path = tmp_path / "store" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CatalignError, match=rf"{name} was altered[\s\S]*catalign embed RUN"):
        EmbeddingStore.open(tmp_path / "store")
    path.write_bytes(content[:-1])
    with pytest.raises(CatalignError, match=f"{name} has"):
        EmbeddingStore.open(tmp_path / "store", verify=False)
    path.unlink()
    with pytest.raises(CatalignError, match=f"{name} is missing"):
        EmbeddingStore.open(tmp_path / "store", verify=False)


def test_unknown_names(tmp_path: Path, vectors: dict[str, np.ndarray]) -> None:
    store = EmbeddingStore.write(tmp_path / "store", IDS, vectors)
    with pytest.raises(CatalignError, match="did you mean 'text'"):
        store["texte"]
    with pytest.raises(CatalignError, match="'image'"):
        store.present("image")
    with pytest.raises(CatalignError, match=r"does not exist[\s\S]*catalign embed RUN"):
        EmbeddingStore.open(tmp_path / "none")
    (tmp_path / "half").mkdir()
    with pytest.raises(CatalignError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "half")
