"""Frozen features, judged by the simplest classifiers: kNN and a linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.metrics import accuracy_score, f1_score

from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import Context, Result, Skipped, data_of, protocol
from catalign.evaluation.baselines import raw_pixels, tfidf
from catalign.registry import register

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)
NEIGHBOURS, TEMPERATURE = 20, 0.1
FEATURES = ["image_features", "text_features", "image", "text", "fused"]
Features = Any  # (N, D) float array or CSR matrix


@dataclass
class Task:
    """One attribute to predict: rows and labels of train, val and test, among the classes that are kept."""

    attribute: str
    classes: list[str]
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    details: dict[str, int]


@register("protocol", "probe")
def probe(
    context: Context,
    *,
    attributes: list[str] | None = None,
    features: list[str] | None = None,
    methods: list[str] | None = None,
    min_count: int = 10,
    max_train: int = 10_000,
    seed: int = 0,
) -> list[Result]:
    """Classify attributes from frozen features, with kNN and a linear layer.

    Data: train rows (at most ``max_train``, drawn by ``seed``) fit the classifiers, val rows choose the linear
    layer's weight decay, test rows are scored once. A class with fewer than ``min_count`` train rows is dropped, its
    test rows too; both are counted in ``details``. A product without the feature's modality is left out.

    kNN: cosine similarity, 20 neighbours, votes weighted by exp(similarity / 0.1) (Wu et al., 2018, "Unsupervised
    feature learning via non-parametric instance discrimination"). Linear: softmax regression on standardised
    features, full-batch L-BFGS, decay from 0.1, 0.01, 0.001, 0.0001 (Alain & Bengio, 2017, "Understanding
    intermediate layers using linear classifier probes").

    Metrics, keyed ``<attribute>/<feature>/<knn|linear>/<metric>``: ``accuracy``; ``macro_f1``, the unweighted mean
    of F1 over the kept classes that occur in test.

    Baselines under the same keys: ``majority`` (the commonest train class), ``untrained`` (the encoder's
    features before training), ``pixels`` (photos averaged to 16 × 12, for image features), ``tfidf`` (titles, for
    text features).

    Args:
        context: What is measured.
        attributes: Columns to predict; null for all with two classes or more.
        features: Embeddings to probe, of image_features, text_features, image, text and fused; null for all.
        methods: ``knn`` and/or ``linear``; null for both.
        min_count: Train rows that a class needs.
        max_train: Train rows used.
        seed: Draws the train rows.
    """
    methods = methods or ["knn", "linear"]
    if strange := set(methods) - {"knn", "linear"}:
        raise unknown("probe method", min(strange), ["knn", "linear"])
    tables = _features(context, context.store, features or FEATURES, strict=features is not None)
    encoders = [f"{name}_features" for name in ("image", "text") if any(table.startswith(name) for table in tables)]
    beside = {"untrained": _features(context, context.untrained, encoders) if context.untrained else {}}
    if any(name.startswith("image") for name in tables):
        beside["pixels"] = {"image_features": (_pixels(context), context.catalogue.has_image)}
    if any(name.startswith("text") for name in tables):
        beside["tfidf"] = {"text_features": (_titles(context), context.catalogue.has_text)}
    metrics: dict[str, float] = {}
    baselines: dict[str, dict[str, float]] = {"majority": {}, **{name: {} for name in beside}}
    details: dict[str, Any] = {}
    for task in _tasks(context, attributes, min_count, max_train, seed):
        details[task.attribute] = task.details
        scores = {name: _scores(task, table, methods) for name, table in tables.items()}
        others = {b: {n: _scores(task, t, methods) for n, t in named.items()} for b, named in beside.items()}
        for name in tables:
            prefix = f"{task.attribute}/{name}"
            metrics |= _keyed(prefix, scores[name])
            baselines["majority"] |= _keyed(prefix, _majority(task, tables[name][1], methods))
            for baseline, found in others.items():
                modality = name.removesuffix("_features")  # an aligned vector is compared with its encoder's features
                baselines[baseline] |= _keyed(prefix, found.get(f"{modality}_features", {}))
    if not metrics:
        raise Skipped("probe: no attribute of this catalogue has two classes with enough train products")
    record = protocol(
        "probe",
        data=data_of(context.catalogue, *sorted(details)),
        train="train split",
        test="test split",
        attributes=sorted(details),
        min_count=min_count,
        max_train=max_train,
        sample_seed=seed,
        knn={"similarity": "cosine", "k": NEIGHBOURS, "temperature": TEMPERATURE},
        linear={"loss": "softmax", "optimiser": "L-BFGS", "decays": DECAYS, "chosen_on": "val accuracy"},
    )
    return [Result("probe", context.name, record, metrics, {b: m for b, m in baselines.items() if m}, details)]


def _keyed(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{key}": value for key, value in scores.items()}


def _features(
    context: Context, store: EmbeddingStore, names: list[str], strict: bool = False
) -> dict[str, tuple[Features, np.ndarray]]:
    found: dict[str, tuple[Features, np.ndarray]] = {}
    for name in names:
        if name in store.names:
            found[name] = (store[name], np.asarray(store.present(name)))
        elif name == "fused" and context.fusion is not None:
            found[name] = context.fused(store)
        elif strict:
            raise unknown("embedding to probe", name, [*store.names, "fused"])
    return found


def _pixels(context: Context) -> np.ndarray:
    return raw_pixels(context.catalogue, np.arange(len(context.catalogue)))


def _titles(context: Context) -> Features:
    catalogue = context.catalogue
    return tfidf(list(catalogue.text(next(iter(catalogue.fields)))))[0]


def _tasks(context: Context, attributes: list[str] | None, min_count: int, max_train: int, seed: int) -> list[Task]:
    catalogue, tasks = context.catalogue, []
    for attribute in attributes if attributes is not None else list(catalogue.attributes):
        if attribute not in catalogue.attributes:
            raise unknown("attribute to probe", attribute, catalogue.attributes)
        values = np.asarray(catalogue.attributes[attribute]).astype(str)
        rows = {split: catalogue.rows(split) for split in ("train", "val", "test")}
        names, counts = np.unique(values[rows["train"]], return_counts=True)
        kept = np.array([name for name, count in zip(names, counts, strict=True) if name and count >= min_count])
        if len(kept) < 2:
            if attributes is not None:
                raise CatalignError(
                    f"attribute {attribute!r} has {len(kept)} classes with {min_count} train products or more",
                    "set evaluation.probe.min_count or evaluation.probe.attributes",
                )
            continue
        known = {split: r[np.isin(values[r], kept)] for split, r in rows.items()}
        if len(known["train"]) > max_train:
            drawn = np.random.default_rng(seed).choice(known["train"], max_train, replace=False)
            known["train"] = np.sort(drawn)
        labels = {split: np.searchsorted(kept, values[r]) for split, r in known.items()}
        details = {"classes": len(kept), "classes_dropped": int((names != "").sum() - len(kept))}
        details |= {f"{split}_rows": len(r) for split, r in known.items()}
        details["test_rows_without_a_kept_class"] = len(rows["test"]) - len(known["test"])
        tasks.append(Task(attribute, kept.tolist(), known, labels, details))
    return tasks


def _scores(task: Task, table: tuple[Features, np.ndarray], methods: list[str]) -> dict[str, float]:
    vectors, present = table
    x, y = {}, {}
    for split, rows in task.rows.items():
        keep = present[rows]
        x[split], y[split] = vectors[rows[keep]], task.labels[split][keep]
    if not len(y["train"]) or not len(y["test"]):
        return {}
    scores: dict[str, float] = {}
    if "knn" in methods:
        scores |= _judge("knn", y["test"], knn(x["train"], y["train"], x["test"], len(task.classes)))
    if "linear" in methods:
        predicted = linear((x["train"], y["train"]), (x["val"], y["val"]), x["test"], len(task.classes))
        scores |= _judge("linear", y["test"], predicted)
    return scores


def _majority(task: Task, present: np.ndarray, methods: list[str]) -> dict[str, float]:
    truth = task.labels["test"][present[task.rows["test"]]]
    guess = np.full_like(truth, np.bincount(task.labels["train"]).argmax())
    return (
        {key: value for method in methods for key, value in _judge(method, truth, guess).items()} if len(truth) else {}
    )


def _judge(method: str, truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    macro = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    return {f"{method}/accuracy": float(accuracy_score(truth, predicted)), f"{method}/macro_f1": float(macro)}


def knn(train: Features, labels: np.ndarray, test: Features, classes: int, chunk: int = 512) -> np.ndarray:
    """Labels of ``test`` rows by a weighted vote of their nearest ``train`` rows, as :func:`probe` defines it.

    Args:
        train: Features ``(N, D)``, dense or CSR.
        labels: Class numbers ``(N,)``.
        test: Features ``(M, D)`` of the same form.
        classes: Number of classes.
        chunk: Test rows compared at once.
    """
    train, test = _unit(train), _unit(test)
    bank = torch.from_numpy(labels)
    predicted = []
    for start in range(0, test.shape[0], chunk):
        similarity = test[start : start + chunk] @ train.T
        dense = torch.from_numpy(similarity.toarray() if issparse(similarity) else similarity)
        values, indices = dense.topk(min(NEIGHBOURS, dense.shape[1]), dim=1)
        votes = torch.zeros(len(dense), classes).scatter_add_(1, bank[indices], (values / TEMPERATURE).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


def _unit(features: Features) -> Features:
    if issparse(features):
        return features  # TF-IDF rows are unit length already
    features = np.asarray(features, dtype=np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def linear(
    train: tuple[Features, np.ndarray], val: tuple[Features, np.ndarray], test: Features, classes: int
) -> np.ndarray:
    """Labels of ``test`` rows by softmax regression whose weight decay is chosen on ``val``.

    The decays are tried from strong to weak, each starting where the last one ended; the path stops once val accuracy
    falls. Dense features are standardised with the train rows' statistics; sparse unit rows are scaled to length 20,
    about that of a standardised row.

    Args:
        train: Features ``(N, D)``, dense or CSR, and class numbers ``(N,)``.
        val: The same of the rows that choose the decay; may be empty.
        test: Features to classify.
        classes: Number of classes.
    """
    x, x_val, x_test = _standardised(train[0], val[0], test)
    y = torch.from_numpy(train[1])
    weight, bias = torch.zeros(x.shape[1], classes), torch.zeros(classes)
    best, predicted = -1.0, np.zeros(0, dtype=np.int64)
    for decay in DECAYS:
        _fit(x, y, weight, bias, decay)
        accuracy = float((_classify(x_val, weight, bias) == val[1]).mean()) if len(val[1]) else 0.0
        if accuracy < best:
            break
        if accuracy > best:
            best, predicted = accuracy, _classify(x_test, weight, bias)
    return predicted


def _times(x: Any, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` for a tensor or a SciPy matrix."""
    return x @ weight if isinstance(x, torch.Tensor) else torch.from_numpy(x @ weight.numpy())


def _classify(x: Any, weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    return (_times(x, weight) + bias).argmax(1).numpy()


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


def _standardised(train: Features, *others: Features) -> list[Any]:
    if issparse(train):
        return [matrix * np.float32(20) for matrix in (train, *others)]
    train = np.asarray(train, dtype=np.float32)
    mean, std = train.mean(0), np.maximum(train.std(0), 1e-6)
    return [torch.from_numpy((np.asarray(matrix, dtype=np.float32) - mean) / std) for matrix in (train, *others)]
