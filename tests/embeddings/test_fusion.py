"""Fusions: what is missing is ignored, what is saved is loaded, and the learned one joins presence patterns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalign import registry
from catalign.config import Component
from catalign.data.store import EmbeddingStore
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.embeddings.fusion.weighted import Weighted
from catalign.errors import CatalignError

OPTIONS = {
    "weighted": [{}, {"weights": {"text": 0.5, "image": 0.5}}],
    "concat": [{}, {"pca": 6, "weights": {"image": 4.0}}],
    "gated": [{"steps": 5, "batch_size": 64, "hidden": 16}],
}
CASES = [(name, options) for name, choices in OPTIONS.items() for options in choices]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def products(count: int = 400, width: int = 16, seed: int = 0) -> tuple[dict, dict]:
    """Text and image that say the same with noise, in spaces that lie apart: the gap that contrastive models have."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(count, width))
    gap = 2 * np.eye(width)[0]
    text = unit(meaning + 0.3 * rng.normal(size=meaning.shape) + gap)
    image = unit(meaning + 0.3 * rng.normal(size=meaning.shape) - gap)
    present = {"text": rng.random(count) < 0.8, "image": np.ones(count, dtype=bool)}
    return {"text": text, "image": image}, present


def test_every_fusion_is_tested() -> None:
    assert set(OPTIONS) == set(registry.names("fusion"))


@pytest.mark.parametrize(("name", "options"), CASES)
class TestEveryFusion:
    def test_missing_slots_say_nothing(self, name: str, options: dict) -> None:
        vectors, present = products()
        fusion = registry.build("fusion", name, **options).fit(vectors, present)
        clean = fusion(vectors, present)
        garbage = {"text": np.where(present["text"][:, None], vectors["text"], np.nan), "image": vectors["image"]}
        np.testing.assert_array_equal(fusion(garbage, present), clean)
        assert clean.dtype == np.float32
        assert clean.shape == (400, fusion.width)
        np.testing.assert_allclose(np.linalg.norm(clean, axis=1), 1, atol=1e-5)
        alone = {"text": np.zeros(400, bool), "image": present["image"]}
        np.testing.assert_allclose(fusion({"image": vectors["image"]}), fusion(vectors, alone), atol=1e-6)
        assert np.abs(fusion(vectors) - fusion(vectors, alone)).max() > 1e-3, "a text that is there changes something"

    def test_garbage_does_not_reach_the_fit(self, name: str, options: dict) -> None:
        vectors, present = products()
        garbage = {"text": np.where(present["text"][:, None], vectors["text"], 1e6), "image": vectors["image"]}
        fits = [registry.build("fusion", name, **options).fit(v, present)(vectors) for v in (vectors, garbage)]
        np.testing.assert_array_equal(*fits)

    def test_nothing_present_is_zeros(self, name: str, options: dict) -> None:
        vectors, present = products()
        present = {"text": present["text"].copy(), "image": present["image"].copy()}
        present["text"][3] = present["image"][3] = False
        fused = registry.build("fusion", name, **options).fit(vectors, present)(vectors, present)
        assert not fused[3].any()
        assert np.isfinite(fused).all()

    def test_saved_and_loaded_are_the_same(self, name: str, options: dict, tmp_path: Path) -> None:
        vectors, present = products()
        fusion = registry.build("fusion", name, **options).fit(vectors, present, np.arange(400) // 2)
        fusion.save(tmp_path / "fusion")
        loaded = Fusion.load(tmp_path / "fusion")
        assert (loaded.name, loaded.names, loaded.width) == (name, ["text", "image"], fusion.width)
        np.testing.assert_array_equal(loaded(vectors, present), fusion(vectors, present))
        weights = tmp_path / "fusion" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        with pytest.raises(CatalignError, match=r"weights.safetensors[\s\S]*catalign index RUN"):
            Fusion.load(tmp_path / "fusion")

    def test_a_store_is_fused_like_its_arrays(self, name: str, options: dict, tmp_path: Path) -> None:
        vectors, present = products(60)
        fusion = registry.build("fusion", name, **options).fit(vectors, present)
        present["image"][:] = False
        store = EmbeddingStore.write(
            tmp_path / "s", [str(n) for n in range(60)], {**vectors, "text_features": vectors["text"]}, present
        )
        fused, some = fuse_store(fusion, store)
        np.testing.assert_array_equal(some, present["text"])
        np.testing.assert_allclose(fused, fusion(vectors, present), atol=1e-6)


def test_weighted_is_the_published_sum() -> None:
    vectors, _ = products()
    fused = Weighted().fit(vectors)(vectors)
    np.testing.assert_allclose(fused, unit(0.9 * vectors["image"] + 0.1 * vectors["text"]), atol=1e-6)
    np.testing.assert_allclose(Weighted().fit(vectors)({"text": vectors["text"]}), vectors["text"], atol=1e-6)


def test_weights_can_be_changed_for_a_query() -> None:
    vectors, _ = products()
    fusion = Weighted().fit(vectors)
    text = fusion.with_weights({"image": 0, "text": 1})
    np.testing.assert_allclose(text(vectors), vectors["text"], atol=1e-6)
    np.testing.assert_allclose(text({"image": vectors["image"]}), vectors["image"], atol=1e-6)
    assert fusion.options["weights"] == {"image": 0.9, "text": 0.1}
    with pytest.raises(CatalignError, match="did you mean 'image'"):
        fusion.with_weights({"imag": 1.0})
    with pytest.raises(CatalignError, match="0 or more"):
        fusion.with_weights({"image": -1.0})


def test_concat_cosines_are_weighted_sums() -> None:
    vectors, _ = products()
    fused = registry.build("fusion", "concat", weights={"image": 3.0}).fit(vectors)(vectors)
    assert fused.shape == (400, 32)
    expected = (3 * vectors["image"] @ vectors["image"].T + vectors["text"] @ vectors["text"].T) / 4
    np.testing.assert_allclose(fused @ fused.T, expected, atol=1e-5)


def test_concat_takes_other_widths_but_sums_do_not() -> None:
    vectors, _ = products()
    vectors["image"] = vectors["image"][:, :9]
    assert registry.build("fusion", "concat").fit(vectors).width == 25
    for name in ("weighted", "gated"):
        with pytest.raises(CatalignError, match=r"text 16, image 9[\s\S]*fusion=concat"):
            registry.build("fusion", name).fit(vectors)


def matches(queries: np.ndarray, gallery: np.ndarray) -> float:
    return float(((queries @ gallery.T).argmax(axis=1) == np.arange(len(queries))).mean())


def test_gated_lets_every_presence_pattern_land_together() -> None:
    train, _ = products(3000)
    test, _ = products(300, seed=1)
    gated = registry.build("fusion", "gated", steps=250, batch_size=256, hidden=64, lr=3e-3).fit(train)
    plain = Weighted(weights={"text": 0.5, "image": 0.5}).fit(train)
    # A gallery where half of the products have text alone and half a photo alone, queried by the other side.
    half = np.arange(300) < 150
    gallery, query = ({"text": mask, "image": ~mask} for mask in (half, ~half))
    scores = {f.name: matches(f(test, query), f(test, gallery)) for f in (gated, plain)}
    assert scores["gated"] > 0.5, scores
    assert scores["gated"] > scores["weighted"] + 0.2, f"the gap between modalities must be bridged: {scores}"
    both = gated(test)
    for name in ("text", "image"):
        assert matches(gated({name: test[name]}), both) > 0.8


def test_gated_is_seeded_and_leaves_the_global_state_alone() -> None:
    import torch

    vectors, present = products()
    state = torch.random.get_rng_state()
    fits = [
        registry.build("fusion", "gated", steps=20, batch_size=64, seed=seed).fit(vectors, present)(vectors)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(fits[0], fits[1])
    assert np.abs(fits[0] - fits[2]).max() > 1e-4


def test_gated_never_ends_worse_than_the_mean_it_starts_from() -> None:
    vectors, _ = products()
    ruined = registry.build("fusion", "gated", steps=20, lr=30.0, batch_size=64).fit(vectors)
    mean = Weighted(weights={"text": 0.5, "image": 0.5}).fit(vectors)
    np.testing.assert_allclose(ruined(vectors), mean(vectors), atol=1e-5)


def test_gated_takes_a_single_modality_and_few_products() -> None:
    vectors, _ = products(3)
    fused = registry.build("fusion", "gated", steps=2).fit({"image": vectors["image"]})({"image": vectors["image"]})
    assert fused.shape == (3, 16)


def test_errors_say_what_to_do() -> None:
    vectors, _ = products()
    fusion = Weighted().fit(vectors)
    for call, message in (
        (lambda: fusion({"txt": vectors["text"]}), "did you mean 'text'"),
        (lambda: fusion({"text": vectors["text"][:, :5]}), r"\(400, 5\); the fusion takes width 16"),
        (lambda: fusion({"text": vectors["text"][:5], "image": vectors["image"]}), r"\[5, 400\] rows"),
        (lambda: Weighted()(vectors), "not fitted"),
        (lambda: Weighted(weights={"text": 0.0}), "one of them above 0"),
        (lambda: Weighted().fit({"sound": vectors["text"]}), "'image'"),
        (lambda: Weighted().fit(vectors, {"text": np.zeros(400), "image": np.zeros(400)}), "nothing|anything to fuse"),
        (lambda: registry.build("fusion", "concat", pca=33).fit(vectors), "pca 33 is above 32"),
        (lambda: registry.build("fusion", "gated", stepz=1), "did you mean 'steps'"),
        (lambda: Fusion.load("nowhere"), r"does not exist[\s\S]*catalign index RUN"),
    ):
        with pytest.raises(CatalignError, match=message):
            call()


def test_fusion_configs_build() -> None:
    from omegaconf import OmegaConf

    folder = Path(__file__).parents[2] / "configs" / "fusion"
    assert {path.stem for path in folder.glob("*.yaml")} == set(OPTIONS)
    for path in folder.glob("*.yaml"):
        config = OmegaConf.create({"seed": 7, "fusion": OmegaConf.load(path)})
        component = Component(**OmegaConf.to_container(config, resolve=True)["fusion"])
        assert component.name == path.stem
        registry.build("fusion", component.name, **component.options)
