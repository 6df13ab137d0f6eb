"""Listings whose photo, title and category disagree: does a score put them above sound ones?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import Context, Result, Skipped, TextEmbedder, data_of, protocol
from catalign.evaluation.baselines import raw_pixels, tfidf
from catalign.evaluation.classification import unit
from catalign.evaluation.significance import RECORD, compared
from catalign.evaluation.swaps import Listings, Spoilt, Swaps
from catalign.registry import register
from catalign.retrieval.neighbours import NEIGHBOURS, TEMPERATURE, Features, nearest, votes
from catalign.retrieval.suspicion import SPREAD, combined, disagreement, doubt, isolation, tails, telling_attribute
from catalign.training.likelihood import PASSES, language_model

Scores = dict[str, np.ndarray]
"""Signal to scores ``(m,)``, higher for what is more suspicious."""


@dataclass
class Bank:
    """Sound train products, what listings are compared with: their rows and categories."""

    rows: np.ndarray
    categories: np.ndarray

    def scores(self, train: Features, listed: Features, listings: Listings) -> Scores:
        """Signals from the neighbours of listings (m, D) among the bank's products (N, D)."""
        classes, labels = np.unique(np.concatenate([self.categories, listings.categories]), return_inverse=True)
        distances, rows = nearest(unit(train), unit(listed))
        shares = votes(distances, labels[: len(self.rows)][rows], len(classes))
        return {
            "distance": isolation(distances),
            "category": doubt(shares, labels[len(self.rows) :]),
        }


@register("protocol", "anomaly")
def anomaly(
    context: Context,
    *,
    category: str | None = None,
    parent: str | None = None,
    share: float = 0.1,
    draws: int = 3,
    seed: int = 0,
) -> list[Result]:
    """Are listings that were spoilt on purpose more suspicious than sound ones?

    Data: test products with a title, a photo and a category; one kind of spoiling at a time, of a share of them, drawn
    from ``seed``. ``photo``, ``title`` and ``category`` are those of a product of another category, ``photo_hard`` and
    ``title_hard`` of another product (group) of the same category, ``category_hard`` another category with the same
    parent; ``words``: every second word of the title is one of another title. Train products are the neighbours.

    Signals: ``agreement``, the cosine distance of title and photo; ``distance``, the mean distance of the fused
    embedding to its 5 nearest train products; ``category``, the share of the votes of its 20 nearest that is not for
    the listed category; ``likelihood``, the mean negative log-probability of the title's tokens by the run's masked
    language model (left out where no stage has one; ``details`` then say so); ``combined``, how rare the rarest of
    them is among val products.

    Metrics, keyed ``<kind>/<signal>/<metric>``, means over the draws: ``auroc``; ``ap``, average precision. Intervals
    and paired tests (``significance``) are of ``auroc``, whose cases are the spoilt listings of all draws: each one's
    share of sound listings that are less suspicious, ties half (DeLong et al. 1988).

    Baselines under the same keys: ``random`` (expected: 0.5 and the share), ``untrained`` (the same model before
    training, fused 0.9 image + 0.1 text), ``tfidf`` (titles' neighbours by word match), ``pixels`` (photos' neighbours,
    averaged to 16 × 12).

    Args:
        context: What is measured.
        category: The attribute of categories; null for the one whose values neighbours share most.
        parent: An attribute that joins like categories; null leaves ``category_hard`` out.
        share: Share of the listings that is spoilt.
        draws: Times that each kind is drawn.
        seed: Of the first draw.

    Raises:
        CatalignError: An attribute that does not exist, or a share that is none.
        Skipped: The run did not align text and image, has no fusion or embedder, or its catalogue has no attribute.
    """
    if not 0 < share < 1 or draws < 1:
        raise CatalignError(f"evaluation.anomaly.share is {share}, draws {draws}", "give a share such as 0.1, draws 3")
    category = _check(context, category, parent)
    catalogue, values = context.catalogue, context.catalogue.attributes[category].astype(str)
    usable = context.store.present("text") & context.store.present("image") & (values != "")
    train, val, test = (rows[usable[rows]] for rows in map(catalogue.rows, ("train", "val", "test")))
    bank, swaps = Bank(train, values[train]), Swaps(catalogue, test, category, parent)
    trials = {kind: [swaps.draw(kind, share, seed + draw) for draw in range(draws)] for kind in swaps.kinds}
    trials = {kind: some for kind, some in trials.items() if all(len(trial.positions) for trial in some)}
    if not trials:
        raise Skipped(f"anomaly: too few test products with a title, a photo and a {category} to spoil any")
    sound = Swaps(catalogue, val, category, parent).sound + swaps.sound
    everything = reduce(add, (trial.listings for some in trials.values() for trial in some), sound)
    scores = {"ours": _of_model(context, context.store, context.embedder, bank, everything)}
    surprise = language_model(context.run) if context.run else None
    if surprise is not None:
        scores["ours"]["likelihood"] = _known(surprise(everything.titles))
    if context.untrained is not None:
        scores["untrained"] = _of_model(context, context.untrained, context.untrained_queries(), bank, everything)
    scores |= _trivial(context, bank, everything)
    measured = {name: _measured(signals, trials, len(val), len(test)) for name, signals in scores.items()}
    metrics, cases = measured.pop("ours")
    baselines = {name: found for name, (found, _) in measured.items()}
    beside = {name: found for name, (_, found) in measured.items()}
    baselines["random"] = {key: share if key.endswith("/ap") else 0.5 for key in metrics}
    record = protocol(
        "anomaly",
        data=data_of(catalogue, category, *([parent] if parent else [])),
        listings="test split",
        neighbours={"of": "train split", "votes": NEIGHBOURS, "temperature": TEMPERATURE, "distance": SPREAD},
        category=category,
        parent=parent,
        kinds=list(trials),
        share=share,
        draws=draws,
        sample_seed=seed,
        likelihood=f"masked language model, every {PASSES}rd token hidden at a time",
        combined="rarest signal, by the tails of val products",
        significance=RECORD,
    )
    details: dict[str, Any] = {"listings": len(test), "train_products": len(train)}
    details["spoilt"] = {kind: len(some[0].positions) for kind, some in trials.items()}
    if surprise is None:
        details["left_out"] = {"likelihood": "no finished stage of this run has the objective mlm"}
    return [Result("anomaly", context.name, record, metrics, baselines, details, significance=compared(cases, beside))]


def _check(context: Context, category: str | None, parent: str | None) -> str:
    store, attributes = context.store, context.catalogue.attributes
    if not {"text", "image"} <= set(store.names) or store["text"].shape[1] != store["image"].shape[1]:
        raise Skipped("anomaly compares titles with photos, and this run did not align them", "train an alignment")
    if context.fusion is None or context.embedder is None:
        raise Skipped("anomaly needs a fusion and an embedder")
    for name in filter(None, (category, parent)):
        if name not in attributes:
            raise unknown("attribute in evaluation.anomaly", name, attributes)
    if category is None:
        vectors, known = context.fused(store)
        category = telling_attribute({name: values[known] for name, values in attributes.items()}, vectors[known])
    if category is None:
        raise Skipped("anomaly: this catalogue has no attribute that neighbours share")
    return category


def _measured(
    scores: Scores, trials: dict[str, list[Spoilt]], references: int, sound: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and the cases of AUROC. Scores are of references, sound listings, then the spoilt ones of every trial."""
    precisions: dict[str, list[float]] = {}
    cases: dict[str, list[np.ndarray]] = {}
    start = references + sound
    for kind, some in trials.items():
        for trial in some:
            part, truth = slice(start, start + len(trial.positions)), np.zeros(sound, dtype=bool)
            start, truth[trial.positions] = part.stop, True
            signals = {name: values[references : references + sound].copy() for name, values in scores.items()}
            for name, signal in signals.items():
                signal[trial.positions] = scores[name][part]
            rarities = [tails(signal, scores[name][:references]) for name, signal in signals.items()]
            for name, signal in (signals | {"combined": combined(rarities)}).items():
                cases.setdefault(f"{kind}/{name}/auroc", []).append(placements(truth, signal))
                precisions.setdefault(f"{kind}/{name}/ap", []).append(average_precision_score(truth, signal))
    joined = {key: np.concatenate(found) for key, found in cases.items()}
    means = {key: float(np.mean(found)) for key, found in (joined | precisions).items()}
    return means, joined


def placements(truth: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """(P,) for each of the P true ones its share of the others with a lower signal, ties half; their mean is AUROC."""
    below = rankdata(signal)[truth] - rankdata(signal[truth])
    return np.asarray(below / (~truth).sum())


def _known(scores: np.ndarray) -> np.ndarray:
    """Scores with the lowest for what has none: metrics rank every listing."""
    return np.where(np.isfinite(scores), scores, np.nanmin(scores))


def _of_model(
    context: Context, store: EmbeddingStore, embedder: TextEmbedder | None, bank: Bank, listings: Listings
) -> Scores:
    """Signals of embeddings: a model's own, or those of the untrained one."""
    assert embedder is not None
    text, image = store["text"][np.maximum(listings.title_rows, 0)], store["image"][listings.photo_rows]
    strange = np.flatnonzero(listings.title_rows < 0)
    if len(strange):
        text[strange] = embedder.text([listings.titles[place] for place in strange])
    fusion = context.fuser(store, own=store is context.store)
    train = fusion({name: np.asarray(store[name][bank.rows]) for name in ("text", "image")})
    neighbours = bank.scores(train, fusion({"text": text, "image": image}), listings)
    return {"agreement": disagreement(text, image), **neighbours}


def _trivial(context: Context, bank: Bank, listings: Listings) -> dict[str, Scores]:
    column = context.catalogue.text(next(iter(context.catalogue.fields)))
    words = tfidf([column[int(row)] for row in bank.rows], listings.titles)
    photos = tuple(raw_pixels(context.catalogue, rows) for rows in (bank.rows, listings.photo_rows))
    pairs: dict[str, Any] = {"tfidf": words, "pixels": photos}
    return {name: bank.scores(train, listed, listings) for name, (train, listed) in pairs.items()}
