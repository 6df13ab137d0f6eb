from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.probe import probe


@pytest.fixture
def toy(catalogue, context):
    rng = np.random.default_rng(5)
    count = 300
    kinds = rng.integers(0, 3, count)
    good = np.eye(3)[kinds] + 0.05 * rng.normal(size=(count, 3))
    splits = np.array(["train", "val", "test"])[np.arange(count) % 3].tolist()
    names = np.array(["shirt", "shoe", "hat"], dtype=object)[kinds]
    names[[0, 3]] = "rare"  # two train rows
    names[5] = "rare"  # and one test row
    names[8] = ""
    colours = np.array(["red", "blue"], dtype=object)[rng.integers(0, 2, count)]
    attributes = {"kind": names, "colour": colours, "brand": np.array(["one"] * count, dtype=object)}
    toy = catalogue([f"{name} thing" for name in names], splits, attributes=attributes)
    noise = rng.normal(size=(count, 3))
    vectors = {"image": noise, "text": good, "text_features": good, "image_features": good}
    return context(
        toy, vectors, {"image_features": noise, "text_features": noise, "image": noise, "text": noise}, name="ours"
    )


def test_separable_features_are_solved_and_noise_is_not(toy):
    (result,) = probe(toy, min_count=5)
    value = {key: values[0] for key, values in result.metrics.items()}
    for method in ("knn", "linear"):
        assert value[f"kind/image_features/{method}/accuracy"] == 1.0
        assert value[f"kind/text_features/{method}/macro_f1"] == 1.0
        assert value[f"kind/image/{method}/accuracy"] < 0.6
        assert value[f"colour/image_features/{method}/accuracy"] < 0.7
        assert value[f"kind/fused/{method}/accuracy"] > value[f"kind/image/{method}/accuracy"]
        untrained = result.baselines["untrained"][f"kind/image/{method}/accuracy"][0]
        assert untrained < 0.6
        assert result.baselines["tfidf"][f"kind/text/{method}/accuracy"] == [1.0]
    assert not any(key.startswith("brand") for key in value)
    assert not any("fused" in key or "text" in key for key in result.baselines["pixels"])


def test_dropped_classes_are_counted(toy):
    (result,) = probe(toy, attributes=["kind"], features=["text"], min_count=5)
    assert result.details["kind"] == {
        "classes": 3,
        "classes_dropped": 1,
        "train_rows": 98,
        "val_rows": 100,
        "test_rows": 98,
        "test_rows_without_a_kept_class": 2,
    }


def test_majority_by_hand(toy):
    (result,) = probe(toy, attributes=["colour"], features=["text"], methods=["knn"])
    colour = toy.catalogue.attributes["colour"]
    train, test = colour[toy.catalogue.rows("train")], colour[toy.catalogue.rows("test")]
    names, counts = np.unique(train.astype(str), return_counts=True)
    guess = np.full(len(test), names[counts.argmax()])
    found = result.baselines["majority"]
    assert found["colour/text/knn/accuracy"] == [pytest.approx((guess == test).mean())]
    assert found["colour/text/knn/macro_f1"] == [pytest.approx(f1_score(test.astype(str), guess, average="macro"))]


def test_train_rows_are_capped_and_drawn_by_seed(toy):
    first, same = (probe(toy, attributes=["colour"], features=["image"], max_train=40, seed=1)[0] for _ in range(2))
    assert first.details["colour"]["train_rows"] == 40
    assert first.metrics == same.metrics
    other = probe(toy, attributes=["colour"], features=["image"], max_train=40, seed=2)[0]
    assert other.protocol["id"] != first.protocol["id"]


def test_rows_without_the_modality_are_left_out(catalogue, context):
    count = 90
    kinds = np.arange(count) // 3 % 2
    has_image = np.arange(count) % 2 == 0
    image = np.where(has_image[:, None], np.eye(2)[kinds], 0)
    splits = np.array(["train", "val", "test"])[np.arange(count) % 3].tolist()
    attributes = {"kind": np.array(["a", "b"], dtype=object)[kinds]}
    toy = catalogue(["t"] * count, splits, attributes=attributes, has_image=has_image)
    (result,) = probe(context(toy, {"image_features": image}), min_count=2)
    assert result.metrics["kind/image_features/linear/accuracy"] == [1.0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attributes": ["colur"]}, "did you mean 'colour'"),
        ({"features": ["imag"]}, "did you mean 'image'"),
        ({"methods": ["lineer"]}, "did you mean 'linear'"),
        ({"attributes": ["brand"]}, "'brand' has 1 classes"),
    ],
)
def test_mistakes_are_told(toy, options, says):
    with pytest.raises(CatalignError, match=says):
        probe(toy, **options)


def test_a_catalogue_without_classes_is_skipped(toy):
    with pytest.raises(Skipped, match="no attribute"):
        probe(toy, min_count=1000)
