"""Similarity of texts: does the cosine of two texts say how alike they are, and whether they are one product?"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata, zscore
from sklearn.metrics import precision_recall_curve

from catalign.artifacts import digest
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import Context, QueryEmbedder, Result, Skipped, protocol
from catalign.evaluation.baselines import tfidf
from catalign.evaluation.inputs import data_file, text_vectors, training
from catalign.evaluation.significance import RECORD, significance
from catalign.registry import register

STS, MATCHING = Path("sts-benchmark"), Path("product-matching")
SETS = ("abt_buy", "amazon_google", "walmart_amazon", "wdc_all_small")
_MARKERS = re.compile(r"\bCOL \S+ VAL\b")


@register("protocol", "similarity")
def similarity(
    context: Context, *, sts: str | None = None, matching: str | None = None, sets: list[str] | None = None
) -> list[Result]:
    """Is the cosine of two texts high where people call them alike, and where they describe one product?

    Data: the test split of STS-B (``<data.root>/sts-benchmark/sts-test.csv``, 1,379 pairs of sentences, graded 0 to 5;
    its dev split is measured apart, for choices); the official splits of product pairs
    ``<data.root>/product-matching/<set>.parquet`` (split, left, right, match): Abt-Buy, Amazon-Google, Walmart-Amazon
    (Mudgal et al. 2018) and WDC small (Primpeli et al. 2019), as Ditto distributes them. A product is all of its
    values, without column names. Nothing is trained on pairs: a text is embedded by the run's encoder as it is.

    Metrics, keyed ``sts/spearman`` (rank correlation of cosines and grades), ``sts-dev/spearman``; per set
    ``<set>/f1``, ``<set>/precision`` and ``<set>/recall`` of pairs called one product, those with a cosine at or above
    a threshold that has the best F1 on the valid split; ``matching/f1``, the mean over sets. Intervals and paired tests
    (``significance``) are of ``sts/spearman``, whose cases are the products of standardised ranks, which have it as
    their mean, and of ``<set>/f1``.

    Baselines: ``random`` (expected correlation; of random scores the best threshold calls every pair one product),
    ``tfidf`` (idf from the train texts of each data set), ``untrained`` (the same encoder before training).

    Args:
        context: What is measured.
        sts: The folder of STS-B, if elsewhere.
        matching: The folder of product pairs, if elsewhere.
        sets: Which of the four sets of pairs; null for all.

    Raises:
        Skipped: No text encoder, or a folder is absent.
        CatalignError: A file is broken.
    """
    if "text" not in context.store.names or context.embedder is None:
        raise Skipped("similarity needs text embeddings and this run has none")
    for name in sets or ():
        if name not in SETS:
            raise unknown("set of product pairs", name, SETS)
    folders = (
        data_file(context, "similarity.sts", sts, STS, "with sts-train.csv, sts-dev.csv and sts-test.csv"),
        data_file(context, "similarity.matching", matching, MATCHING, "Parquet of github.com/megagonlabs/ditto"),
    )
    trials = {"sts": read_sts(folders[0]), **{name: read_matching(folders[1], name) for name in sets or SETS}}
    own = _measure(trials, partial(_cosines, context.embedder))
    rows = {"tfidf": _measure(trials, _word_match)}
    if (untrained := context.untrained_queries()) is not None:
        rows["untrained"] = _measure(trials, partial(_cosines, untrained))
    record = protocol(
        "similarity",
        data={name: digest(trial, 8) for name, trial in trials.items()},
        similarity="cosine",
        threshold="best F1 on the valid split",
        significance=RECORD,
    )
    counts = {name: len(trial.test.left) for name, trial in trials.items()}
    return [
        Result(
            "similarity",
            context.name,
            record,
            own.metrics,
            {"random": _random(trials), **{name: row.metrics for name, row in rows.items()}},
            {"pairs": counts, "thresholds": own.thresholds, "training": training(context)},
            significance={"ours": own.significance(rows), **{name: row.significance({}) for name, row in rows.items()}},
        )
    ]


class Pairs(NamedTuple):
    """P pairs of texts and what people said of them: a grade 0 to 5; or 1 for one product, 0 for two."""

    left: list[str]
    right: list[str]
    gold: list[float]


class Trial(NamedTuple):
    """A data set: texts that word counts may be taken from, pairs to choose on, pairs to judge by."""

    texts: list[str]
    valid: Pairs
    test: Pairs


@dataclass
class Measured:
    """One row: its metrics, and the test cases of those that are means (``grades``) and of F1 (``calls``)."""

    metrics: dict[str, float] = field(default_factory=dict)
    grades: dict[str, np.ndarray] = field(default_factory=dict)
    calls: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)

    def significance(self, others: Mapping[str, Measured]) -> dict[str, float]:
        """Intervals, and tests against other rows."""
        means = significance(self.grades, {name: row.grades for name, row in others.items()})
        return means | significance(self.calls, {name: row.calls for name, row in others.items()}, f1)


def read_sts(folder: Path) -> Trial:
    """STS-B, as its authors distribute it: tab separated, nothing quoted; grade and sentences in columns 5 to 7.

    Raises:
        CatalignError: A line is too short or its grade is no number.
    """
    found = []
    for split in ("train", "dev", "test"):
        path = folder / f"sts-{split}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        try:
            found.append(
                Pairs([line[5] for line in lines], [line[6] for line in lines], [float(line[4]) for line in lines])
            )
        except (IndexError, ValueError) as error:
            raise CatalignError(
                f"{path} is not STS-B: {error}", "it needs 7 columns between tabs, the fifth a grade"
            ) from None
    return Trial([*found[0].left, *found[0].right], *found[1:])


def read_matching(folder: Path, name: str) -> Trial:
    """Pairs of products with columns split, left, right and match; a product's values stand behind COL … VAL.

    Raises:
        CatalignError: The file is absent or lacks a column or a split.
    """
    path = folder / f"{name}.parquet"
    try:
        table = pd.read_parquet(path, columns=["split", "left", "right", "match"])
    except (OSError, ValueError) as error:
        raise CatalignError(
            f"{path} cannot be read: {error}", "it needs the columns split, left, right, match"
        ) from None
    for side in ("left", "right"):
        table[side] = [" ".join(_MARKERS.sub(" ", text).split()) for text in table[side]]
    splits = {split: table[table["split"] == split] for split in ("train", "valid", "test")}
    if empty := [split for split, part in splits.items() if part.empty]:
        raise CatalignError(f"{path} has no pair in split {empty[0]}", "copy the official splits")
    valid, test = (
        Pairs(part["left"].tolist(), part["right"].tolist(), part["match"].astype(float).tolist())
        for part in (splits["valid"], splits["test"])
    )
    return Trial([*splits["train"]["left"], *splits["train"]["right"]], valid, test)


def _measure(trials: Mapping[str, Trial], scorer: Callable[[Trial, Pairs], np.ndarray]) -> Measured:
    row = Measured()
    for name, trial in trials.items():
        valid, test = (scorer(trial, pairs) for pairs in (trial.valid, trial.test))
        if name == "sts":
            row.grades["sts/spearman"] = spearman_cases(test, trial.test.gold)
            row.metrics["sts/spearman"] = float(row.grades["sts/spearman"].mean())
            row.metrics["sts-dev/spearman"] = float(spearman_cases(valid, trial.valid.gold).mean())
            continue
        row.thresholds[name] = threshold(valid, trial.valid.gold)
        calls = 2 * np.array(trial.test.gold) + (test >= row.thresholds[name])
        row.calls[f"{name}/f1"] = calls
        row.metrics[f"{name}/f1"] = float(f1(calls))
        row.metrics[f"{name}/precision"] = float((calls == 3).sum() / max((calls % 2).sum(), 1))
        row.metrics[f"{name}/recall"] = float((calls == 3).sum() / (calls >= 2).sum())
    row.metrics["matching/f1"] = float(np.mean([row.metrics[key] for key in row.calls]))
    return row


def spearman_cases(similarities: np.ndarray, gold: Sequence[float]) -> np.ndarray:
    """(P,) products of standardised ranks; their mean is Spearman's correlation."""
    return np.asarray(zscore(rankdata(similarities)) * zscore(rankdata(gold)))


def threshold(similarities: np.ndarray, gold: Sequence[float]) -> float:
    """The similarity at or above which pairs must be called one product for the best F1."""
    precision, recall, thresholds = precision_recall_curve(gold, similarities)
    return float(thresholds[np.argmax((precision * recall / np.maximum(precision + recall, 1e-12))[:-1])])


def f1(calls: np.ndarray, axis: int = -1) -> np.ndarray:
    """F1 of calls (…, P): 3 a match called so, 2 one missed, 1 a wrong call, 0 a right refusal."""
    matched = 2 * (calls == 3).sum(axis=axis)
    return matched / np.maximum(matched + (calls == 2).sum(axis=axis) + (calls == 1).sum(axis=axis), 1)


def _cosines(embedder: QueryEmbedder, trial: Trial, pairs: Pairs) -> np.ndarray:
    left, right = (text_vectors(embedder, texts).astype(np.float64) for texts in (pairs.left, pairs.right))
    return (left * right).sum(axis=1)


def _word_match(trial: Trial, pairs: Pairs) -> np.ndarray:
    _, left, right = tfidf(trial.texts, pairs.left, pairs.right)
    return np.asarray(left.multiply(right).sum(axis=1)).ravel()


def _random(trials: Mapping[str, Trial]) -> dict[str, float]:
    """Random similarities: no correlation; the best threshold calls every pair one product."""
    metrics = {"sts/spearman": 0.0, "sts-dev/spearman": 0.0}
    shares = {name: float(np.mean(trial.test.gold)) for name, trial in trials.items() if name != "sts"}
    for name, share in shares.items():
        metrics |= {f"{name}/f1": 2 * share / (1 + share), f"{name}/precision": share, f"{name}/recall": 1.0}
    return {**metrics, "matching/f1": float(np.mean([metrics[f"{name}/f1"] for name in shares]))}
