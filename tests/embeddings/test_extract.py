"""From products and queries to vectors, with a model that knows colours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from catalign.data.catalogue import Catalogue
from catalign.embeddings.extract import Embedder, weights_digest
from catalign.errors import CatalignError
from toy_products import NO_PHOTO, NO_TEXT, ToyModel, make_catalogue, photo


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_catalogue(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def embedder(catalogue: Catalogue) -> Embedder:
    return Embedder(ToyModel(catalogue), catalogue, config="toy")


def test_a_store_holds_the_whole_catalogue(catalogue: Catalogue, embedder: Embedder, tmp_path: Path) -> None:
    store = embedder.catalogue(catalogue, tmp_path / "store", batch_size=7, progress=False)
    assert store.ids == catalogue.ids
    assert set(store.names) == {"text", "image", "text_features", "image_features"}
    assert store.manifest["data"] == catalogue.fingerprint
    assert store.manifest["weights"] == weights_digest(embedder.model)
    assert store.manifest["config"] == "toy"
    for name, absent in (("text", NO_TEXT), ("image", NO_PHOTO)):
        if absent in catalogue.ids:
            assert not store.present(name)[catalogue.row(absent)]
            assert not store[name][catalogue.row(absent)].any()
        has = store.present(name)
        np.testing.assert_allclose(np.linalg.norm(store[name][has], axis=1), 1, atol=1e-5)
        features = store[f"{name}_features"][has]
        np.testing.assert_allclose(
            features / np.linalg.norm(features, axis=1, keepdims=True), store[name][has], atol=1e-5
        )


def test_queries_agree_with_the_store(catalogue: Catalogue, embedder: Embedder, tmp_path: Path) -> None:
    store = embedder.catalogue(catalogue, tmp_path / "store", batch_size=64, progress=False)
    rows = np.flatnonzero(store.present("text") & store.present("image"))
    texts = embedder.text([catalogue.text()[row] for row in rows], batch_size=5)
    np.testing.assert_allclose(texts, store["text"][rows], atol=1e-6)
    pictures = embedder.images([catalogue.images[row] for row in rows], batch_size=5)
    np.testing.assert_allclose(pictures, store["image"][rows], atol=1e-6)
    features = embedder.image_features([catalogue.images[row] for row in rows], batch_size=5)
    np.testing.assert_allclose(features, store["image_features"][rows], atol=1e-6)


def test_every_form_of_photo(embedder: Embedder, tmp_path: Path) -> None:
    content = photo("red", 3)
    (tmp_path / "photo.png").write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    forms = [content, tmp_path / "photo.png", str(tmp_path / "photo.png"), opened, np.asarray(opened)]
    vectors = embedder.images(forms)
    np.testing.assert_array_equal(vectors, np.repeat(vectors[:1], 5, axis=0))
    wide = embedder.images([opened.resize((320, 480))])
    np.testing.assert_allclose(wide, vectors[:1], atol=0.01)


def test_markup_is_cleaned_as_in_the_catalogue(embedder: Embedder) -> None:
    np.testing.assert_array_equal(embedder.text(["<b>Red</b>  shoe"]), embedder.text(["red shoe"]))


@pytest.mark.parametrize("text", ["", "   ", "<br>", "\n\t", "☃☃"])
def test_text_that_tokenises_to_nothing(embedder: Embedder, text: str) -> None:
    with pytest.raises(CatalignError, match=r"tokenises to nothing[\s\S]*red running shoes"):
        embedder.text(["red shoe", text])
    assert embedder.knows(["red shoe", text]).tolist() == [True, False]


def test_images_that_are_none(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "words.jpg").write_text("not a photo")
    (tmp_path / "cut.png").write_bytes(photo("red")[:60])
    for bad, message in (
        (tmp_path / "none.jpg", r"none.jpg is not an image.*not found"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.jpg", "empty.jpg.*zero bytes"),
        (tmp_path / "words.jpg", "words.jpg.*undecodable"),
        (tmp_path / "cut.png", "cut.png is not an image"),
        (b"", "bytes is not an image.*zero bytes"),
        (12, "int is not an image.*wrong type"),
    ):
        with pytest.raises(CatalignError, match=message):
            embedder.images([bad])


def test_a_model_without_an_encoder_says_so(catalogue: Catalogue, tmp_path: Path) -> None:
    model = ToyModel(catalogue)
    del model.encoders["text"]
    embedder = Embedder(model, catalogue)
    with pytest.raises(CatalignError, match="no text encoder, only image"):
        embedder.text(["red"])
    store = embedder.catalogue(catalogue, tmp_path / "store", progress=False)
    assert store.names == ["image", "image_features"]


def test_bf16_is_close(catalogue: Catalogue, embedder: Embedder) -> None:
    half = Embedder(embedder.model, catalogue, precision="bf16")
    np.testing.assert_allclose(half.text(["red shoe"]), embedder.text(["red shoe"]), atol=0.02)


def test_digest_of_weights_changes_with_them(catalogue: Catalogue) -> None:
    one, other = ToyModel(catalogue), ToyModel(catalogue)
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other.encoders["image"].scale.add_(1e-6)
    assert weights_digest(one) != weights_digest(other)
