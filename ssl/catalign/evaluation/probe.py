"""Frozen features, judged by the simplest classifiers: kNN and a linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from catalign.data.store import EmbeddingStore
from catalign.errors import unknown
from catalign.evaluation.base import Context, Result, Skipped, data_of, protocol
from catalign.evaluation.classification import CLASSIFIERS, DECAYS, Task, chosen_methods, judge, pixels, tasks, titles
from catalign.registry import register
from catalign.retrieval.neighbours import NEIGHBOURS, TEMPERATURE, Features

FEATURES = ["image_features", "text_features", "image", "text", "fused"]


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
    methods = chosen_methods(methods)
    tables = _features(context, context.store, features or FEATURES, strict=features is not None)
    encoders = [f"{name}_features" for name in ("image", "text") if any(table.startswith(name) for table in tables)]
    beside = {"untrained": _features(context, context.untrained, encoders) if context.untrained else {}}
    if any(name.startswith("image") for name in tables):
        beside["pixels"] = {"image_features": (pixels(context.catalogue), context.catalogue.has_image)}
    if any(name.startswith("text") for name in tables):
        beside["tfidf"] = {"text_features": (titles(context.catalogue), context.catalogue.has_text)}
    metrics: dict[str, float] = {}
    baselines: dict[str, dict[str, float]] = {"majority": {}, **{name: {} for name in beside}}
    details: dict[str, Any] = {}
    options: dict[str, Any] = {"min_count": min_count, "max_train": max_train, "seed": seed}
    for task in tasks(context.catalogue, attributes, **options, where="evaluation.probe"):
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


def _scores(task: Task, table: tuple[Features, np.ndarray], methods: list[str]) -> dict[str, float]:
    vectors, present = table
    data = {}
    for split, rows in task.rows.items():
        keep = present[rows]
        data[split] = vectors[rows[keep]], task.labels[split][keep]
    (x, truth), scores = data["test"], dict[str, float]()
    if not len(truth) or not len(data["train"][1]):
        return scores
    for method in methods:
        classify = CLASSIFIERS[method](data["train"], data["val"], len(task.classes))
        scores |= _keyed(method, judge(truth, classify(x).argmax(1)))
    return scores


def _majority(task: Task, present: np.ndarray, methods: list[str]) -> dict[str, float]:
    truth = task.labels["test"][present[task.rows["test"]]]
    guess = np.full_like(truth, np.bincount(task.labels["train"]).argmax())
    return {k: v for method in methods for k, v in _keyed(method, judge(truth, guess)).items()} if len(truth) else {}
