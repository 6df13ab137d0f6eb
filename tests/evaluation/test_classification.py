"""The simplest classifiers, beside scikit-learn's and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from catalign.errors import CatalignError
from catalign.evaluation import classification as module
from catalign.evaluation.classification import NONE, chosen_methods, judge, knn, linear, tasks


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
    ours = linear((x, y), (val, val_y), 4)(test)
    assert np.abs(ours - theirs.predict_proba((test - mean) / std)).max() < 0.02


def test_sparse_and_dense_rows_give_the_same_labels():
    rng = np.random.default_rng(1)
    (x, y), (val, val_y), (test, _) = (blobs(rng, n) for n in (200, 60, 100))
    dense = [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (x, val, test)]
    sparse = [csr_matrix(matrix) for matrix in dense]

    def labels(classifier, rows):
        return classifier((rows[0], y), (rows[1], val_y), 4)(rows[2]).argmax(1)

    assert (labels(knn, sparse) == labels(knn, dense)).all()
    agree = labels(linear, sparse) == labels(linear, dense)
    assert agree.mean() > 0.9  # they differ in scale, so in the decay that fits


def test_knn_is_its_definition():
    rng = np.random.default_rng(2)
    (x, y), (test, _) = blobs(rng, 120), blobs(rng, 50)
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (x, test)]
    expected = []
    for row in unit[1]:
        similarity = unit[0] @ row
        nearest = np.argsort(-similarity)[:20]
        shares = np.bincount(y[nearest], np.exp(similarity[nearest] / 0.1), 4)
        expected.append(shares / shares.sum())
    assert np.allclose(knn((x, y), (x, y), 4)(test), expected, atol=1e-4)


def test_decay_is_chosen_on_val(monkeypatch):
    """On val rows that repeat train a weaker decay is never worse; with their labels turned around it always is."""
    rng, tried = np.random.default_rng(3), []
    x, y = rng.normal(size=(60, 100)).astype(np.float32), rng.integers(0, 2, 60)
    original = module._fit
    monkeypatch.setattr(module, "_fit", lambda *given: (tried.append(given[-1]), original(*given)))
    assert (linear((x, y), (x, y), 2)(x).argmax(1) == y).all()
    assert tuple(tried) == module.DECAYS
    tried.clear()
    monkeypatch.setattr(module, "DECAYS", (1000.0, 0.1, 0.01))
    linear((x, y), (x, 1 - y), 2)
    assert tuple(tried) == (1000.0, 0.1)


def test_a_rare_class_is_dropped_or_counts_as_wrong(catalogue):
    values = np.array(["a", "b", "a", "b", "rare", "a", "b", "", "rare", "a"], dtype=object)
    toy = catalogue(["t"] * 10, ["train"] * 4 + ["val"] + ["test"] * 5, attributes={"kind": values})
    options = {"min_count": 1, "max_train": 100, "seed": 0, "where": "here"}
    (dropped,), (kept,) = tasks(toy, ["kind"], **options), tasks(toy, ["kind"], **options, rare=True)
    assert dropped.labels["test"].tolist() == [0, 1, 0]
    assert kept.labels["test"].tolist() == [0, 1, NONE, 0]
    assert kept.rows["test"].tolist() == [5, 6, 8, 9]
    assert kept.labels["val"].tolist() == [NONE]
    assert kept.details["test_rows_without_a_kept_class"] == dropped.details["test_rows_without_a_kept_class"] == 2


def test_no_class_is_wrong_but_no_class_of_f1():
    scores = judge(np.array([0, 1, NONE, 0]), np.array([0, 1, 1, NONE]))
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_an_unknown_method_is_told():
    with pytest.raises(CatalignError, match="did you mean 'linear'"):
        chosen_methods(["lineer"])
