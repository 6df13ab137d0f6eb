"""Missing attributes filled in from what else is known of a product: its text, its photo, or both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError, unknown
from catalign.evaluation import finetuning
from catalign.evaluation.base import Context, Result, Skipped, TextEmbedder, data_of, protocol
from catalign.evaluation.baselines import tfidf
from catalign.evaluation.classification import CLASSIFIERS, DECAYS, NONE, Task, chosen_methods, judge, pixels, tasks
from catalign.evaluation.masking import Mask
from catalign.evaluation.significance import RECORD, compared
from catalign.registry import register
from catalign.retrieval.neighbours import NEIGHBOURS, TEMPERATURE, Features, threshold_at
from catalign.training.model import Model

INPUTS = ("text", "image", "fused")
FINETUNE = "finetune"
Table = tuple[Features, np.ndarray]
"""Features of some products and which of them have any, ``(n,)`` bool."""


@dataclass
class Fills:
    """One value for every product of a split, right or not.

    Attributes:
        predicted: (n,) class numbers; NONE for a product without the input.
        confidence: (n,) probability of that class; 0 for a product without the input.
        truth: (n,) class numbers; NONE for a class that is not among the kept ones.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    truth: np.ndarray

    @classmethod
    def none(cls, truth: np.ndarray) -> Fills:
        """No product has the input."""
        return cls(np.full(len(truth), NONE), np.zeros(len(truth)), truth)

    def take(self, has: np.ndarray, probabilities: np.ndarray) -> None:
        """Fill in the m products that have the input, (n,) bool, from their probabilities (m, C)."""
        self.predicted[has], self.confidence[has] = probabilities.argmax(1), probabilities.max(1)

    @property
    def made(self) -> np.ndarray:
        """(n,) bool: False for a product without the input."""
        return self.predicted != NONE

    @property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return self.made & (self.predicted == self.truth)


@register("protocol", "attributes")
def attributes(
    context: Context,
    *,
    attributes: list[str] | None = None,
    inputs: list[str] | None = None,
    methods: list[str] | None = None,
    precision: float = 0.95,
    min_count: int = 10,
    max_train: int = 10_000,
    seed: int = 0,
) -> list[Result]:
    """Fill in missing attributes from text, photo or both, without copying them from the text.

    Data: a product of test lacks one attribute at a time. Train products (at most ``max_train``, drawn by ``seed``)
    support it, val products choose the linear layer's weight decay and the confidence from which a fill is accepted,
    test is read once. Words of any value of the attribute are removed from all texts first (capitals, plurals,
    possessives, hyphens; see :class:`~catalign.evaluation.masking.Mask`), and what is left is embedded again.

    Inputs: ``text``, the aligned embedding of the masked primary text; ``image``, that of the photo; ``fused``, both,
    by the run's fusion. Methods: ``knn`` and ``linear``, as in the probe protocol, of frozen embeddings; ``finetune``
    trains a copy of the encoders for each attribute, with a linear layer each, whose logits add up where an input is
    ``fused`` (``evaluation/finetuning.py``). Its ``untrained`` row is the same training from scratch.

    Metrics, keyed ``<attribute>/<input>/<method>/<metric>``, over all test products that have the attribute: a product
    without the input, or of a class with fewer than ``min_count`` train rows, counts as wrong. ``accuracy``;
    ``macro_f1``, the unweighted mean of F1 over the kept classes that occur in test; ``coverage``, the share whose
    confidence reaches the threshold; ``precision``, how many of those fills are right (1 if there are none). The
    threshold is the lowest that reaches the wished precision on val. Intervals and paired tests (``significance``) are
    of ``accuracy``, over test products.

    Baselines under the same keys: ``majority`` (the commonest train class), ``tfidf`` (masked texts' words),
    ``pixels`` (photos averaged to 16 × 12), ``untrained`` (the same model before training; fused 0.9 image + 0.1 text).

    Args:
        context: What is measured.
        attributes: Columns to fill in; null for all with two classes or more.
        inputs: Of text, image and fused; null for all that the run has.
        methods: Of ``knn``, ``linear`` and ``finetune``, which takes minutes per attribute; null for the first two.
        precision: Wished share of right fills among the accepted ones.
        min_count: Train rows that a class needs.
        max_train: Train rows used.
        seed: Draws the train rows.

    Raises:
        CatalignError: An attribute, input or method that does not exist, or a precision that is no share.
        Skipped: Texts are asked for and there is no embedder, fine-tuning is and there is no run, or no attribute has
            two classes.
    """
    methods, inputs = chosen_methods(methods, FINETUNE), _chosen(context, inputs)
    if FINETUNE in methods and context.run is None:
        raise Skipped("attributes: fine-tuning needs a run's model")
    if not 0 < precision <= 1:
        raise CatalignError(f"evaluation.attributes.precision is {precision}", "give a share, such as 0.95")
    options: dict[str, Any] = {"min_count": min_count, "max_train": max_train, "seed": seed}
    found = tasks(context.catalogue, attributes, **options, where="evaluation.attributes", rare=True)
    rows: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    cases: dict[str, dict[str, np.ndarray]] = {}
    frozen = [method for method in methods if method != FINETUNE]
    photos = pixels(context.catalogue) if "image" in inputs and frozen else None
    models = _models(context) if FINETUNE in methods else {}
    for task in found:
        if not len(task.rows["test"]):
            continue
        details[task.attribute] = task.details
        texts = masked_texts(context, task)
        fills = (
            (row, name, method, _filled(task, table, method))
            for row, name, table in (_tables(context, task, inputs, photos, texts) if frozen else ())
            for method in frozen
        )
        for row, name, method, (val, test) in chain(fills, _finetuned(context, task, inputs, models, texts)):
            prefix = f"{task.attribute}/{name}/{method}"
            scores = {f"{prefix}/{key}": value for key, value in _scores(val, test, precision).items()}
            rows.setdefault(row, {}).update(scores)
            cases.setdefault(row, {})[f"{prefix}/accuracy"] = test.right.astype(float)
        val, test = _majority(task)
        common, right = _scores(val, test, precision), test.right.astype(float)
        keys = [f"{task.attribute}/{name}/{method}" for name in inputs for method in methods]
        rows.setdefault("majority", {}).update({f"{key}/{m}": v for key in keys for m, v in common.items()})
        cases.setdefault("majority", {}).update({f"{key}/accuracy": right for key in keys})
    if not rows:
        raise Skipped("attributes: no attribute of this catalogue has two classes with enough train products")
    record = protocol(
        "attributes",
        data=data_of(context.catalogue, *sorted(details)),
        train="train split",
        test="test split",
        attributes=sorted(details),
        masked="words of any value of the attribute, in the primary text",
        precision=precision,
        threshold_chosen_on="val",
        min_count=min_count,
        max_train=max_train,
        sample_seed=seed,
        knn={"similarity": "cosine", "k": NEIGHBOURS, "temperature": TEMPERATURE},
        linear={"loss": "softmax", "optimiser": "L-BFGS", "decays": DECAYS, "chosen_on": "val accuracy"},
        finetune=finetuning.RECORD,
        significance=RECORD,
    )
    ours, significance = rows.pop("ours"), compared(cases.pop("ours"), cases)
    return [Result("attributes", context.name, record, ours, rows, details, significance=significance)]


def _chosen(context: Context, inputs: list[str] | None) -> list[str]:
    for name in inputs or []:
        if name not in INPUTS:
            raise unknown("input to fill in attributes from, evaluation.attributes.inputs:", name, INPUTS)
    has = [name for name in INPUTS if name in context.store.names]
    has += ["fused"] if context.fusion is not None and set(has) == {"text", "image"} else []
    if missing := [name for name in inputs or [] if name not in has]:
        raise Skipped(f"attributes: this run has no {missing[0]} embeddings")
    if "text" in has and context.embedder is None:
        raise Skipped("attributes needs an embedder for masked texts")
    return inputs or has


def _models(context: Context) -> dict[str, Model]:
    """Where fine-tuning starts, by row."""
    assert context.run is not None
    models = {"ours": context.run.model()}
    return models if context.untrained is None else {**models, "untrained": context.run.untrained()}


def _finetuned(
    context: Context, task: Task, inputs: list[str], models: dict[str, Model], texts: dict[str, list[str]]
) -> Iterator[tuple[str, str, str, tuple[Fills, Fills]]]:
    """The row, the input, the method, the fills of val and test: of the run's model, and of one from scratch."""
    for row, model in models.items():
        assert context.config is not None
        answers = finetuning.finetune(
            model,
            context.catalogue,
            {split: finetuning.Products(task.rows[split], texts[split], task.labels[split]) for split in texts},
            len(task.classes),
            _chosen(context, None),  # what is asked for changes nothing in what is learned
            seed=context.seed,
            precision=context.config.trainer.precision,
            title=f"fine-tuning for {task.attribute}, {row}",
        )
        for name in inputs:
            val, test = (Fills.none(task.labels[split]) for split in ("val", "test"))
            for split, fill in (("val", val), ("test", test)):
                probabilities, has = answers[split][name]
                fill.take(has, probabilities[has])
            yield row, name, FINETUNE, (val, test)


def _tables(
    context: Context, task: Task, inputs: list[str], photos: np.ndarray | None, texts: dict[str, list[str]]
) -> Iterator[tuple[str, str, dict[str, Table]]]:
    """Frozen features of every row, input by input: ``ours`` or a baseline, the input, its features per split."""
    models: list[tuple[str, EmbeddingStore, TextEmbedder | None]] = [("ours", context.store, context.embedder)]
    if context.untrained is not None:
        models.append(("untrained", context.untrained, context.untrained_queries()))
    for row, store, embedder in models:
        own: dict[str, dict[str, Table]] = {}
        if "text" in inputs or "fused" in inputs:
            assert embedder is not None
            own["text"] = {split: embedded(embedder, some, store["text"].shape[1]) for split, some in texts.items()}
        if "image" in inputs or "fused" in inputs:
            has = store.present("image")
            own["image"] = {split: (store["image"][rows], has[rows]) for split, rows in task.rows.items()}
        if "fused" in inputs:
            fusion = context.fuser(store, own=row == "ours")
            own["fused"] = {}
            for split in texts:
                vectors, present = ({name: own[name][split][part] for name in ("text", "image")} for part in (0, 1))
                own["fused"][split] = fusion(vectors, present), present["text"] | present["image"]
        yield from ((row, name, own[name]) for name in inputs)
    if "text" in inputs:
        words = tfidf(texts["train"], texts["val"], texts["test"])
        has_text = (np.array([bool(text) for text in some]) for some in texts.values())
        yield "tfidf", "text", dict(zip(texts, zip(words, has_text), strict=True))
    if photos is not None:
        seen = context.catalogue.has_image
        yield "pixels", "image", {split: (photos[rows], seen[rows]) for split, rows in task.rows.items()}


def masked_texts(context: Context, task: Task) -> dict[str, list[str]]:
    """Per split, the primary texts of a task's products without the words of the attribute's values."""
    column, values = context.catalogue.text(next(iter(context.catalogue.fields))), context.catalogue.attributes
    mask = Mask(set(values[task.attribute].tolist()) - {""})
    return {split: [mask(column[int(row)]) for row in rows] for split, rows in task.rows.items()}


def embedded(embedder: Any, texts: list[str], width: int) -> Table:
    """Texts as vectors (n, width), and which of them have a word that the model knows."""
    known = embedder.knows(texts)
    vectors = np.zeros((len(texts), width), dtype=np.float32)
    if known.any():
        vectors[known] = embedder.text([text for text, has in zip(texts, known, strict=True) if has])
    return vectors, known


def _filled(task: Task, table: dict[str, Table], method: str) -> tuple[Fills, Fills]:
    """The fills of val and of test."""
    data = {split: (features[has], task.labels[split][has]) for split, (features, has) in table.items()}
    fills = [Fills.none(task.labels[split]) for split in ("val", "test")]
    if len(data["train"][1]):
        classify = CLASSIFIERS[method](data["train"], data["val"], len(task.classes))
        for split, fill in zip(("val", "test"), fills, strict=True):
            features, has = data[split][0], table[split][1]
            if has.any():
                fill.take(has, classify(features))
    return fills[0], fills[1]


def _majority(task: Task) -> tuple[Fills, Fills]:
    counts = np.bincount(task.labels["train"])
    share, truths = counts.max() / counts.sum(), (task.labels["val"], task.labels["test"])
    val, test = (Fills(np.full(len(y), counts.argmax()), np.full(len(y), share), y) for y in truths)
    return val, test


def _scores(val: Fills, test: Fills, precision: float) -> dict[str, float]:
    threshold = threshold_at(val.confidence[val.made], val.right[val.made], precision)
    accepted = test.made & (test.confidence >= threshold)
    reached = float(test.right[accepted].mean()) if accepted.any() else 1.0
    return {**judge(test.truth, test.predicted), "coverage": float(accepted.mean()), "precision": reached}
