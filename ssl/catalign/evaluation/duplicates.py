"""Near-duplicates: are products that share a title or a photo found by their embeddings, and no others?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from catalign.data.catalogue import Catalogue
from catalign.data.splits import MAX_TWINS, components, find_groups
from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import Context, Result, Skipped, data_of, protocol
from catalign.evaluation.baselines import centred
from catalign.evaluation.classification import pixels, titles, unit
from catalign.evaluation.inputs import training
from catalign.evaluation.significance import RECORD, compared
from catalign.registry import register
from catalign.retrieval.neighbours import NEIGHBOURS, Features, nearest

EMBEDDINGS = ("fused", "image", "text")
TRIED = 100  # thresholds

Table = tuple[Features, np.ndarray]
"""Features ``(N, D)`` of a catalogue's products, and which of them have some ``(N,)``."""


@register("protocol", "duplicates")
def duplicates(context: Context, *, embeddings: list[str] | None = None, neighbours: int = NEIGHBOURS) -> list[Result]:
    """Are the products that share a title or a photo grouped together, and no others?

    Data: every product of a split is compared with its nearest train products and those of its own split, by cosine
    similarity. Pairs at or above a threshold are joined, and what hangs together is a group of near-duplicates: a pair
    that nobody compared may be in one. Val products choose the threshold, the best F1 of 100 numbers of pairs from 1 to
    all, in even ratios, for each truth of its own; test products are judged once.

    Truth: ``pixels``, the same prepared photo, pixel for pixel (one that more than 100 products have is a placeholder
    and says nothing); ``titles``, the same letters and digits in one case; ``either``, one of these, directly or
    through other products. It knows no other near-duplicates: photos that were encoded again count as wrong calls.

    Metrics, keyed ``<truth>/<metric>``, over pairs of a test product and another one: ``precision`` (share of the pairs
    in one group that are true), ``recall`` (share of the true pairs that are in one group), ``f1``. Intervals and
    paired tests (``significance``) are of ``f1``, whose cases are the test products.

    Rows: the run's fusion; ``-image`` and ``-text``, the embedding of one side alone.

    Baselines: ``pixels`` (photos averaged to 16 × 12, centred), ``tfidf`` (titles), ``untrained`` (the same embedding
    before any training, fused 0.9 image + 0.1 text).

    Args:
        context: What is measured.
        embeddings: Of fused, image and text; null for all that the run has.
        neighbours: Nearest products that a product is compared with.

    Raises:
        CatalignError: An embedding that does not exist, or no neighbour.
        Skipped: The run lacks a named embedding, or val or test products share nothing with others.
    """
    if neighbours < 1:
        raise CatalignError(f"evaluation.duplicates.neighbours is {neighbours}", "give 1 or more")
    catalogue, names = context.catalogue, _chosen(context, embeddings)
    keys = _truths(catalogue)
    val, test = (_trial(catalogue, split, keys) for split in ("val", "test"))
    truths = [truth for truth in keys if val.true(truth).any() and test.true(truth).any()]
    if not truths:
        raise Skipped("duplicates: no product of val, or none of test, shares its title or photo with another one")

    def measured(table: Table) -> Measured:
        return _measured(val, test, truths, table, neighbours)

    trivial = {name: measured(table) for name, table in _trivial(catalogue).items()}
    record = protocol(
        "duplicates",
        data=data_of(catalogue),
        compared=f"{neighbours} nearest of train and the own split, cosine; what hangs together is a group",
        truths=truths,
        placeholder=MAX_TWINS,
        threshold=f"best F1 on val, {TRIED} tried",
        significance=RECORD,
    )
    details = {"training": training(context), "products": int(test.asked.sum()), "gallery": len(test.rows)}
    details |= {f"true_pairs_{truth}": int(test.true(truth)[test.asked].sum()) for truth in truths}
    results = []
    for name in names:
        own, beside = measured(_features(context, context.store, name)), dict(trivial)
        if context.untrained is not None:
            beside["untrained"] = measured(_features(context, context.untrained, name))
        row = context.name if name == "fused" else f"{context.name}-{name}"
        baselines = {other: found.metrics for other, found in beside.items()}
        facts = {**details, "thresholds": own.thresholds, "groups": own.groups}
        sure = compared(own.cases, {other: found.cases for other, found in beside.items()}, f1)
        results.append(Result("duplicates", row, record, own.metrics, baselines, facts, significance=sure))
    return results


class Trial(NamedTuple):
    """G products, some of which are asked about.

    Attributes:
        rows: (G,) catalogue rows.
        asked: (G,) bool.
        same: By truth, (G,) numbers that are equal for products that are the same.
    """

    rows: np.ndarray
    asked: np.ndarray
    same: dict[str, np.ndarray]

    def true(self, truth: str) -> np.ndarray:
        """(G,) how many true duplicates a product has, of those asked about."""
        return np.where(self.asked, others(self.same[truth]), 0)


class Pairs(NamedTuple):
    """P pairs of a trial's products, as places among its G, and their similarity."""

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray


@dataclass
class Measured:
    """One way to find duplicates: its metrics, and by truth the test cases of F1, the thresholds and the groups."""

    metrics: dict[str, float] = field(default_factory=dict)
    cases: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)


def _chosen(context: Context, embeddings: list[str] | None) -> list[str]:
    for name in embeddings or ():
        if name not in EMBEDDINGS:
            raise unknown("embedding to find duplicates by", name, EMBEDDINGS)
    has = [name for name in EMBEDDINGS if name in context.store.names or (name == "fused" and context.fusion)]
    if missing := [name for name in embeddings or () if name not in has]:
        raise Skipped(f"duplicates: this run has no {missing[0]} embeddings")
    return embeddings or has


def _truths(catalogue: Catalogue) -> dict[str, np.ndarray]:
    column, images = list(catalogue.text(next(iter(catalogue.fields)))), catalogue.images
    has_image, nothing = catalogue.has_image, np.zeros(len(catalogue), dtype=bool)
    return {
        "pixels": find_groups([""] * len(column), images, has_image, near=False),
        "titles": find_groups(column, images, nothing, near=False),
        "either": find_groups(column, images, has_image, near=False),
    }


def _trial(catalogue: Catalogue, split: str, truths: Mapping[str, np.ndarray]) -> Trial:
    rows = catalogue.rows("train", split)
    return Trial(rows, catalogue.splits[rows] == split, {truth: keys[rows] for truth, keys in truths.items()})


def _features(context: Context, store: EmbeddingStore, name: str) -> Table:
    if name == "fused":
        return context.fused(store, own=store is context.store)
    return store[name], store.present(name)


def _trivial(catalogue: Catalogue) -> dict[str, Table]:
    return {
        "pixels": (centred(pixels(catalogue)), catalogue.has_image),
        "tfidf": (titles(catalogue), catalogue.has_text),
    }


def _measured(val: Trial, test: Trial, truths: list[str], table: Table, neighbours: int) -> Measured:
    features, has = table
    compared, judged = (nearest_pairs(trial, features, has, neighbours) for trial in (val, test))
    ordered = np.append(np.inf, np.sort(compared.similarity)[::-1])
    tried = ordered[np.unique(np.geomspace(1, len(ordered), TRIED).astype(int)) - 1]
    found = [joined(compared, threshold, len(val.rows)) for threshold in tried]
    measured = Measured()
    for truth in truths:
        threshold = tried[np.argmax([f1(counts(val, labels, truth)) for labels in found])]
        labels = joined(judged, threshold, len(test.rows))
        cases = counts(test, labels, truth)
        right, called = cases.real.sum(), others(labels)[test.asked].sum()
        measured.metrics |= {
            f"{truth}/precision": float(right / max(called, 1)),
            f"{truth}/recall": float(right / test.true(truth).sum()),
            f"{truth}/f1": float(f1(cases)),
        }
        measured.cases[f"{truth}/f1"], measured.thresholds[truth] = cases, float(threshold)
        measured.groups[truth] = len(np.unique(labels[test.asked & (others(labels) > 0)]))
    return measured


def nearest_pairs(trial: Trial, features: Features, has: np.ndarray, neighbours: int) -> Pairs:
    """Every product asked about with its nearest ones, of those that have features."""
    bank = np.flatnonzero(has[trial.rows])
    asked = bank[trial.asked[bank]]
    vectors = unit(features[trial.rows])
    distances, places = nearest(vectors[bank], vectors[asked], neighbours + 1)  # itself is one of them
    left, right = np.repeat(asked, places.shape[1]), bank[places.ravel()]
    other = left != right
    # Rounded, for equal vectors must be equally similar, and a distance is no exact sum.
    return Pairs(left[other], right[other], np.round(1 - np.square(distances.ravel()[other]) / 2, 5))


def joined(pairs: Pairs, threshold: float, count: int) -> np.ndarray:
    """(count,) numbers of the groups that pairs at or above a threshold make."""
    called = pairs.similarity >= threshold
    return components(count, np.stack([pairs.left, pairs.right], axis=1)[called])


def others(labels: np.ndarray) -> np.ndarray:
    """(G,) how many others have a product's label."""
    return np.bincount(labels)[labels] - 1


def counts(trial: Trial, groups: np.ndarray, truth: str) -> np.ndarray:
    """What :func:`f1` takes of every product asked about: right calls, and as imaginary part calls plus true ones."""
    same = trial.same[truth]
    _, both = np.unique(groups * (same.max() + 1) + same, return_inverse=True)
    return (others(both) + 1j * (others(groups) + others(same)))[trial.asked]


def f1(cases: np.ndarray, axis: int = -1) -> np.ndarray:
    """F1 over products, of :func:`counts` (…, Q)."""
    return 2 * cases.real.sum(axis=axis) / np.maximum(cases.imag.sum(axis=axis), 1)
