from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from catalign.errors import CatalignError
from catalign.evaluation import probe as module
from catalign.evaluation.base import Skipped
from catalign.evaluation.probe import knn, linear, probe


def blobs(rng, count: int, classes: int = 4, width: int = 6, spread: float = 0.7):
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(9).normal(size=(classes, width))
    return (centres[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels


def test_linear_is_softmax_regression(monkeypatch):
    rng = np.random.default_rng(0)
    (x, y), (val, val_y), (test, _) = (blobs(rng, n) for n in (300, 100, 200))
    decay = 0.01
    monkeypatch.setattr(module, "DECAYS", (decay,))
    mean, std = x.mean(0), x.std(0)
    # sklearn minimises C sum(loss) + |w|^2 / 2; ours mean(loss) + decay |w|^2 / 2.
    theirs = LogisticRegression(C=1 / (decay * len(x)), max_iter=1000).fit((x - mean) / std, y)
    ours = linear((x, y), (val, val_y), test, 4)
    assert (ours == theirs.predict((test - mean) / std)).mean() > 0.98


def test_sparse_and_dense_rows_give_the_same_labels():
    rng = np.random.default_rng(1)
    (x, y), (val, val_y), (test, _) = (blobs(rng, n) for n in (200, 60, 100))
    dense = [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (x, val, test)]
    sparse = [csr_matrix(matrix) for matrix in dense]
    assert (knn(sparse[0], y, sparse[2], 4) == knn(dense[0], y, dense[2], 4)).all()
    agree = linear((sparse[0], y), (sparse[1], val_y), sparse[2], 4) == linear(
        (dense[0], y), (dense[1], val_y), dense[2], 4
    )
    assert agree.mean() > 0.9  # they differ in scale, so in the decay that fits


def test_knn_is_its_definition():
    rng = np.random.default_rng(2)
    (x, y), (test, _) = blobs(rng, 120), blobs(rng, 50)
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (x, test)]
    expected = []
    for row in unit[1]:
        similarity = unit[0] @ row
        nearest = np.argsort(-similarity)[:20]
        expected.append(np.bincount(y[nearest], np.exp(similarity[nearest] / 0.1), 4).argmax())
    assert (knn(x, y, test, 4, chunk=7) == expected).all()


def test_decay_is_chosen_on_val(monkeypatch):
    """On val rows that repeat train a weaker decay is never worse; with their labels turned around it always is."""
    rng, tried = np.random.default_rng(3), []
    x, y = rng.normal(size=(60, 100)).astype(np.float32), rng.integers(0, 2, 60)
    original = module._fit
    monkeypatch.setattr(module, "_fit", lambda *given: (tried.append(given[-1]), original(*given)))
    assert (linear((x, y), (x, y), x, 2) == y).all()
    assert tuple(tried) == module.DECAYS
    tried.clear()
    monkeypatch.setattr(module, "DECAYS", (1000.0, 0.1, 0.01))
    linear((x, y), (x, 1 - y), x, 2)
    assert tuple(tried) == (1000.0, 0.1)


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
