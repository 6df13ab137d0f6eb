from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.duplicates import Trial, counts, duplicates, f1, joined, nearest_pairs

SPLITS = np.array(["train", "val", "test"])


@pytest.fixture
def shop(catalogue, context, unit_rows, monkeypatch):
    """90 products; in each split two of one title and two of one photo, whose embeddings are equal too."""
    monkeypatch.setattr("catalign.evaluation.significance.DRAWS", 99)
    rng = np.random.default_rng(3)
    toy = catalogue([f"name{row}" for row in range(90)], SPLITS[np.arange(90) // 30].tolist())
    for first in (0, 30, 60):
        toy.titles[first + 1] = toy.titles[first].upper() + "!"
        toy.images[first + 3] = toy.images[first + 2]
    text, image = rng.normal(size=(2, 90, 16))
    for first in (0, 30, 60):
        text[first + 1], image[first + 3] = text[first], image[first + 2]
    vectors = {"text": unit_rows(text), "image": unit_rows(image)}
    noise = {name: unit_rows(rng.normal(size=(90, 16))) for name in vectors}

    def make(**changes):
        return context(toy, {**vectors, **changes}, noise, name="ours")

    make.vectors, make.catalogue = vectors, toy
    return make


def test_equal_embeddings_are_found_by_their_truth(shop):
    results = {result.row: result for result in duplicates(shop())}
    assert list(results) == ["ours", "ours-image", "ours-text"]
    for row, truth in (("ours-image", "pixels"), ("ours-text", "titles")):
        for metric in ("precision", "recall", "f1"):
            assert results[row].metrics[f"{truth}/{metric}"] == [1.0]
    assert results["ours-text"].metrics["pixels/f1"][0] < 0.5
    assert results["ours"].baselines["pixels"]["pixels/f1"] == [1.0]
    assert results["ours"].baselines["tfidf"]["titles/f1"] == [1.0]
    assert results["ours"].baselines["untrained"]["titles/f1"][0] < 0.5
    details = results["ours-image"].details
    assert (details["products"], details["gallery"], details["groups"]["pixels"]) == (30, 60, 1)
    assert (details["true_pairs_pixels"], details["true_pairs_either"]) == (2, 4)
    assert results["ours-text"].significance["ours"]["titles/f1/minus/untrained"][0] > 0.5
    assert len({result.protocol["id"] for result in results.values()}) == 1


def test_pairs_are_counted_as_scikit_learn_counts_them():
    rng = np.random.default_rng(0)
    count = 60
    same, groups, asked = rng.integers(0, 15, count), rng.integers(0, 12, count), rng.random(count) < 0.5
    cases = counts(Trial(np.arange(count), asked, {"titles": same}), groups, "titles")
    left, right = np.nonzero(asked[:, None] & ~np.eye(count, dtype=bool))
    truth, called = same[left] == same[right], groups[left] == groups[right]
    assert f1(cases) == pytest.approx(f1_score(truth, called))
    right_calls = cases.real.sum()
    assert right_calls / called.sum() == pytest.approx(precision_score(truth, called))
    assert right_calls / truth.sum() == pytest.approx(recall_score(truth, called))


def test_only_products_asked_about_are_compared_and_what_hangs_together_is_a_group():
    angles = np.radians([0, 5, 10, 90, 91])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    trial = Trial(np.arange(5), np.array([False, True, False, False, False]), {})
    pairs = nearest_pairs(trial, vectors, np.array([True, True, True, True, False]), 2)
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == {(1, 0), (1, 2)}
    assert pairs.similarity == pytest.approx(np.cos(np.radians(5)), abs=1e-5)
    assert joined(pairs, 0.99, 5).tolist() == [0, 0, 0, 1, 2]
    assert joined(pairs, 0.999, 5).tolist() == [0, 1, 2, 3, 4]


def test_thresholds_are_those_of_val(shop):
    (first,) = duplicates(shop(), embeddings=["image"])
    moved = shop.vectors["image"].copy()
    moved[63] = -moved[62]
    (second,) = duplicates(shop(image=moved), embeddings=["image"])
    assert second.details["thresholds"] == first.details["thresholds"]
    assert second.metrics["pixels/recall"] == [0.0]


def test_a_product_without_the_embedding_is_missed_but_counts(shop):
    shop.catalogue.has_text[60] = False
    (result,) = duplicates(shop(), embeddings=["text"])
    assert result.metrics["titles/recall"] == [0.0]
    assert result.details["true_pairs_titles"] == 2


def test_mistakes_and_what_is_lacking_are_told(shop, catalogue, context):
    with pytest.raises(CatalignError, match="did you mean 'image'"):
        duplicates(shop(), embeddings=["imag"])
    with pytest.raises(CatalignError, match="neighbours is 0"):
        duplicates(shop(), neighbours=0)
    alone = catalogue(["a", "b", "c"], SPLITS.tolist())
    with pytest.raises(Skipped, match="shares its title or photo"):
        duplicates(context(alone, {"image": np.eye(3)}))
    with pytest.raises(Skipped, match="no text embeddings"):
        duplicates(context(alone, {"image": np.eye(3)}), embeddings=["text"])
