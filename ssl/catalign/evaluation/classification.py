"""Attributes as classification tasks, and the simplest classifiers of frozen features: kNN and a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.metrics import accuracy_score, f1_score

from catalign.data.catalogue import Catalogue
from catalign.embeddings.fusion.base import normalised
from catalign.errors import CatalignError, unknown
from catalign.evaluation.baselines import raw_pixels, tfidf
from catalign.retrieval.neighbours import Features, nearest, votes

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)
SPLITS = ("train", "val", "test")
NONE = -1
"""The label of a product whose class is not among the kept ones."""

Labelled = tuple[Features, np.ndarray]
"""Features ``(N, D)``, dense or CSR, and class numbers ``(N,)``."""

Classifier = Callable[[Features], np.ndarray]
"""From features ``(M, D)`` to probabilities ``(M, C)``."""


@dataclass
class Task:
    """One attribute to predict: rows and labels of train, val and test, and the classes that are kept."""

    attribute: str
    classes: list[str]
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    details: dict[str, int]


def tasks(
    catalogue: Catalogue,
    attributes: list[str] | None,
    *,
    min_count: int,
    max_train: int,
    seed: int,
    where: str,
    rare: bool = False,
) -> list[Task]:
    """One task per attribute.

    Args:
        catalogue: The products.
        attributes: Columns to predict; None for all with two classes or more.
        min_count: Train rows that a class needs.
        max_train: Train rows used, at most.
        seed: Draws the train rows.
        where: The config key of the options, for messages.
        rare: Keep val and test rows of other classes, under the label :data:`NONE`; else they are dropped.

    Raises:
        CatalignError: An attribute that does not exist, or has fewer than two classes.
    """
    made = []
    for attribute in attributes if attributes is not None else list(catalogue.attributes):
        if attribute not in catalogue.attributes:
            raise unknown("attribute to predict", attribute, catalogue.attributes)
        values = np.asarray(catalogue.attributes[attribute]).astype(str)
        rows = {split: catalogue.rows(split) for split in SPLITS}
        names, counts = np.unique(values[rows["train"]], return_counts=True)
        kept = np.array([name for name, count in zip(names, counts, strict=True) if name and count >= min_count])
        if len(kept) < 2:
            if attributes is not None:
                raise CatalignError(
                    f"attribute {attribute!r} has {len(kept)} classes with {min_count} train products or more",
                    f"set {where}.min_count or {where}.attributes",
                )
            continue
        known = {split: r[np.isin(values[r], kept)] for split, r in rows.items()}
        details = {"classes": len(kept), "classes_dropped": int((names != "").sum() - len(kept))}
        details["test_rows_without_a_kept_class"] = len(rows["test"]) - len(known["test"])
        if len(known["train"]) > max_train:
            drawn = np.random.default_rng(seed).choice(known["train"], max_train, replace=False)
            known["train"] = np.sort(drawn)
        if rare:
            known |= {split: r[values[r] != ""] for split, r in rows.items() if split != "train"}
        labels = {split: _numbered(values[r], kept) for split, r in known.items()}
        details |= {f"{split}_rows": len(r) for split, r in known.items()}
        made.append(Task(attribute, kept.tolist(), known, labels, details))
    return made


def _numbered(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(np.isin(values, kept), np.searchsorted(kept, values), NONE)


def pixels(catalogue: Catalogue) -> np.ndarray:
    """Every photo averaged to 16 × 12."""
    return raw_pixels(catalogue, np.arange(len(catalogue)))


def titles(catalogue: Catalogue) -> Features:
    """TF-IDF of every primary text."""
    return tfidf(list(catalogue.text(next(iter(catalogue.fields)))))[0]


def judge(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean of F1 over the classes that occur in the truth; :data:`NONE` is no class."""
    classes = np.unique(truth[truth != NONE])
    macro = f1_score(truth, predicted, labels=classes, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, predicted)), "macro_f1": float(macro)}


def knn(train: Labelled, val: Labelled, classes: int) -> Classifier:
    """A weighted vote of the 20 nearest train rows by cosine similarity; see :func:`votes`. It needs no val rows."""
    bank, labels = unit(train[0]), train[1]

    def classify(features: Features) -> np.ndarray:
        distances, rows = nearest(bank, unit(features))
        return votes(distances, labels[rows], classes)

    return classify


def unit(features: Features) -> Features:
    """Rows scaled to length 1; TF-IDF rows are that already."""
    if issparse(features):
        return features
    return normalised(np.asarray(features, dtype=np.float32))


def linear(train: Labelled, val: Labelled, classes: int) -> Classifier:
    """Softmax regression whose weight decay is chosen on val, which may be empty.

    The decays are tried from strong to weak, each starting where the last one ended; the path stops once val accuracy
    falls. Dense features are standardised with the train rows' statistics; sparse unit rows are scaled to length 20,
    about that of a standardised row.
    """
    scale = _scaling(train[0])
    x, x_val, y = scale(train[0]), scale(val[0]), torch.from_numpy(train[1])
    weight, bias = torch.zeros(x.shape[1], classes), torch.zeros(classes)
    best, chosen = -1.0, (weight, bias)
    for decay in DECAYS:
        _fit(x, y, weight, bias, decay)
        guesses = (_times(x_val, weight) + bias).argmax(1).numpy()
        accuracy = float((guesses == val[1]).mean()) if len(val[1]) else 0.0
        if accuracy < best:
            break
        if accuracy > best:
            best, chosen = accuracy, (weight.clone(), bias.clone())

    def classify(features: Features) -> np.ndarray:
        return (_times(scale(features), chosen[0]) + chosen[1]).softmax(1).numpy()

    return classify


CLASSIFIERS: dict[str, Callable[[Labelled, Labelled, int], Classifier]] = {"knn": knn, "linear": linear}


def chosen_methods(methods: list[str] | None, *others: str) -> list[str]:
    """The classifiers that a config names, all of them if it names none.

    Args:
        methods: Their names.
        others: Further methods that may be named.

    Raises:
        CatalignError: There is no such method.
    """
    for method in methods or []:
        if method not in (*CLASSIFIERS, *others):
            raise unknown("method of classification", method, (*CLASSIFIERS, *others))
    return methods or list(CLASSIFIERS)


def _times(x: Any, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` for a tensor or a SciPy matrix."""
    return x @ weight if isinstance(x, torch.Tensor) else torch.from_numpy(x @ weight.numpy())


def _fit(x: Any, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, decay: float) -> None:
    """Minimise cross-entropy + decay/2 |weight|^2 in place; the gradient by hand, so that ``x`` may be sparse."""
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=30, history_size=10, tolerance_change=1e-5, line_search_fn="strong_wolfe"
    )
    rows, transposed = torch.arange(len(y)), x.T.tocsr() if issparse(x) else x.T

    def closure() -> torch.Tensor:
        log_probabilities = (_times(x, weight) + bias).log_softmax(1)
        loss = -log_probabilities[rows, y].mean() + 0.5 * decay * weight.square().sum()
        error = log_probabilities.exp_()
        error[rows, y] -= 1
        error /= len(y)
        weight.grad = _times(transposed, error) + decay * weight
        bias.grad = error.sum(0)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]


def _scaling(train: Features) -> Callable[[Features], Any]:
    if issparse(train):
        return lambda features: features * np.float32(20)
    train = np.asarray(train, dtype=np.float32)
    mean, std = train.mean(0), np.maximum(train.std(0), 1e-6)
    return lambda features: torch.from_numpy((np.asarray(features, dtype=np.float32) - mean) / std)
