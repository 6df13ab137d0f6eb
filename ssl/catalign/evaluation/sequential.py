"""Sequential recommendation: after what a user did, which product comes next?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, cast

import numpy as np

from catalign.artifacts import digest
from catalign.data.catalogue import Catalogue
from catalign.data.history_batches import BEHAVIOUR
from catalign.data.interactions import TRAIN, Cases, Histories
from catalign.data.ragged import Ragged
from catalign.data.store import EmbeddingStore
from catalign.errors import CatalignError
from catalign.evaluation import recommenders
from catalign.evaluation.base import TIES, Context, Metrics, Result, Skipped, protocol
from catalign.evaluation.negatives import draw_negatives
from catalign.evaluation.recommenders import counts
from catalign.evaluation.target_metrics import Trial
from catalign.registry import register
from catalign.retrieval.targets import Scorer, Vectors

SEEN = {
    "exclude": "products of the context are not ranked, but the target is even if it is one",
    "keep": "products of the context are ranked too",
}
COLD = "cold"
BUCKETS = ("tail", "middle", "head")


class HistoryEmbedder(Protocol):
    """What the protocol needs of an Embedder."""

    model: Any

    def histories(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Rows of products, oldest first, as ``(n, D)`` unit vectors."""


@register("protocol", "sequential")
def sequential(
    context: Context,
    *,
    split: Literal["test", "val"] = "test",
    seen: Literal["exclude", "keep"] = "exclude",
    negatives: int | None = None,
    sampling: Literal["uniform", "popular"] = "uniform",
    draw: int = 0,
    gallery: Literal["all", "cold"] = "all",
    ks: list[int] = [1, 5, 10, 20],  # noqa: B006 - a config's default, never changed
    buckets: list[int] = [5, 20],  # noqa: B006
) -> list[Result]:
    """After what a user did, which product comes next?

    References: Kang & McAuley 2018 (SASRec: leave-one-out, 100 sampled negatives); Zhou et al. 2020 (S3-Rec: all
    products, and 99 negatives); Krichene & Rendle 2020 (why ranks among sampled negatives mislead).

    Data: the catalogue's histories. One case per event of ``split``; its context is what the user did before, the val
    event too when the case is of test. The model embeds the context; products are its item vectors or, where it scores
    no items, their fused content. All products are ranked, without those of the context (``seen``); none of Amazon's
    5-core logs has a repeated event. A product without a vector is never found; as a target it is a miss.

    With ``negatives``, a target is ranked among so many products, drawn once and for all without those that the user
    has anywhere in the log. Numbers of that kind are far higher and do not order models as full ranking does.

    Rows are named after the run; other options than the usual ones are added to the name, as in ``beauty-99-uniform``.

    Metrics, keyed ``<catalogue>/<metric>`` and averaged over cases: ``hr@k`` (the target is in the top k), ``ndcg@k``
    (1 / log2(rank + 1) if it is), ``mrr@k`` (1 / rank if it is), ``mrr`` (without a cut). hr and ndcg also by how often
    the target is bought in train events, keyed ``<catalogue>/<group>/<metric>``: ``cold`` (never), ``tail``,
    ``middle``, ``head``. Equal scores are ranked in catalogue order.

    Baselines, on the same cases and products: ``random`` (expected), ``popularity`` (counts of train events),
    ``popularity_leaking`` (counts of all events, the targets too, as published tables have it), ``item_knn`` (cosine of
    train co-occurrence), ``bpr_mf`` (matrix factorisation of train events, where the library implicit is installed),
    ``tfidf`` (titles that share words with the context's, where there are titles), ``untrained`` (the same encoders
    before any training).

    Args:
        context: What is measured.
        split: Whose events are predicted.
        seen: ``exclude`` leaves products of the context out, ``keep`` ranks them.
        negatives: Number of sampled negatives; null ranks all products.
        sampling: ``uniform``, or ``popular``: in proportion to train events.
        draw: Another number draws other negatives. It is not the run's seed: rows must share their negatives.
        gallery: ``all``, or ``cold``: only products without a train event, and the cases whose target is one.
        ks: Cut-offs.
        buckets: Most train events of a tail and of a middle product.

    Raises:
        Skipped: No histories, no behaviour encoder, nothing to compare histories with, or no case.
        CatalignError: An option out of range.
    """
    _check(ks, buckets, negatives)
    embedder, histories = _behaviour(context)
    catalogue, all_cases = context.catalogue, histories.cases(split)
    often = counts(histories, len(catalogue), TRAIN)
    pool = often == 0 if gallery == COLD else np.ones(len(catalogue), dtype=bool)
    cases = _of_targets(all_cases, pool)
    drawn = None
    if negatives is not None:
        weights = pool * (often if sampling == "popular" else np.ones(len(catalogue)))
        drawn = draw_negatives(histories, cases, weights, negatives, seed=draw)
    hidden, groups = cases.contexts if seen == "exclude" else None, _groups(often[cases.targets], buckets)
    trial = Trial(catalogue.name, cases, hidden, pool, drawn, groups, ks)
    began = time.perf_counter()
    ranks = trial.ranks(embedded(context, context.store, embedder, cases.contexts))
    seconds = time.perf_counter() - began
    baselines = _baselines(context, trial, histories)
    marks = _marks(seen, negatives, sampling, gallery)
    record = protocol(
        "sequential",
        "-".join([catalogue.name, split, *marks]),
        data=log_of(catalogue, histories),
        split=split,
        seen=SEEN[seen],
        negatives=None if drawn is None else {"number": negatives, "sampling": sampling, "drawn": _hash(drawn)},
        gallery=gallery,
        ks=ks,
        buckets=buckets,
        ties=TIES,
    )
    counted = {"cases_left_out": len(all_cases) - len(cases), "rank_seconds": round(seconds, 1)}
    details = {**_details(trial, ranks, baselines), **counted, **_training(context)}
    row = "-".join([context.name, *(["val"] if split == "val" else []), *marks])
    return [Result("sequential", row, record, trial.metrics(ranks), baselines, details)]


def _check(ks: list[int], buckets: list[int], negatives: int | None) -> None:
    if not ks or min(ks) < 1:
        raise CatalignError(f"evaluation.sequential.ks is {ks}", "give cut-offs of 1 or more, such as [5, 10, 20]")
    if len(buckets) != len(BUCKETS) - 1 or not 0 < buckets[0] < buckets[1]:
        raise CatalignError(f"evaluation.sequential.buckets is {buckets}", "give two rising counts, such as [5, 20]")
    if negatives is not None and negatives < 1:
        raise CatalignError(f"evaluation.sequential.negatives is {negatives}", "null ranks all products")


def _behaviour(context: Context) -> tuple[HistoryEmbedder, Histories]:
    if context.catalogue.histories is None:
        raise Skipped("sequential needs histories and this catalogue has none", "name a log: data.interactions.path=…")
    if context.embedder is None or BEHAVIOUR not in cast(HistoryEmbedder, context.embedder).model.encoders:
        raise Skipped("sequential needs a behaviour encoder and this run has none", "train one: next_item, for example")
    return cast(HistoryEmbedder, context.embedder), context.catalogue.histories


def _of_targets(cases: Cases, pool: np.ndarray) -> Cases:
    """The cases whose target is in the gallery."""
    kept = pool[cases.targets]
    if not kept.any():
        raise Skipped("no case has a cold target", "hold products out: data=amazon_games_cold, for example")
    contexts = cases.contexts.slices(cases.contexts.offsets[:-1][kept], cases.contexts.offsets[1:][kept])
    return replace(cases, users=cases.users[kept], contexts=contexts, targets=cases.targets[kept])


def _groups(often: np.ndarray, buckets: list[int]) -> dict[str, np.ndarray]:
    bucket = np.searchsorted(buckets, often, side="left")
    named = {name: (bucket == number) & (often > 0) for number, name in enumerate(BUCKETS)}
    return {COLD: often == 0, **named}


def embedded(context: Context, store: EmbeddingStore, embedder: HistoryEmbedder, contexts: Ragged) -> Vectors:
    """Histories and products as a model places them: by its item vectors, else among fused content.

    Raises:
        Skipped: The store has neither, or they are not of one space.
    """
    asked = np.asarray(embedder.histories([contexts[row] for row in range(len(contexts))]))
    if BEHAVIOUR in store.names:
        return Vectors(asked, store[BEHAVIOUR], store.present(BEHAVIOUR))
    if not store.modalities:
        raise Skipped("sequential has nothing to compare histories with: this run embeds no products")
    own = store is context.store
    products, present = context.fused(store, own)
    if own and context.fusion is not None and BEHAVIOUR in context.fusion.names:
        asked = context.queries(BEHAVIOUR, asked)
    if asked.shape[1] != products.shape[1]:
        raise Skipped(
            f"sequential: histories have width {asked.shape[1]} and fused products {products.shape[1]}",
            "align behaviour with content: a contrastive stage over these encoders",
        )
    return Vectors(asked, products, present)


def _baselines(context: Context, trial: Trial, histories: Histories) -> dict[str, Metrics]:
    total, cases = len(context.catalogue), trial.cases
    titles = context.catalogue.text(next(iter(context.catalogue.fields)))
    beside: dict[str, Scorer | None] = {
        "popularity": recommenders.popularity(histories, total, TRAIN),
        "popularity_leaking": recommenders.popularity(histories, total),
        "item_knn": recommenders.item_knn(histories, total, cases.contexts),
        "bpr_mf": recommenders.bpr_mf(histories, total, cases.users),
        "tfidf": recommenders.word_match(titles, cases.contexts),
    }
    if context.untrained is not None and (embedder := context.untrained_queries()) is not None:
        untrained = cast(HistoryEmbedder, embedder)
        beside["untrained"] = embedded(context, context.untrained, untrained, cases.contexts)
    measured = {name: trial.metrics(trial.ranks(scorer)) for name, scorer in beside.items() if scorer is not None}
    return {"random": trial.random(), **measured}


def _details(trial: Trial, ranks: np.ndarray, baselines: dict[str, Metrics]) -> dict[str, Any]:
    cases, absent = trial.cases, "left out: it needs the library implicit (pip install 'catalign[bench]')"
    case = np.repeat(np.arange(len(cases)), cases.contexts.lengths)
    again = case[cases.contexts.values == cases.targets[case]]
    return {
        "cases": {"all": len(cases), **{name: int(chosen.sum()) for name, chosen in trial.groups.items()}},
        "gallery": int(trial.gallery.sum()),
        "targets_without_vector": int(np.isinf(ranks).sum()),
        "targets_in_context": len(np.unique(again)),
        "baselines": {
            "item_knn": {"neighbours": recommenders.NEIGHBOURS},
            "bpr_mf": recommenders.BPR if "bpr_mf" in baselines else absent,
        },
    }


def _marks(seen: str, negatives: int | None, sampling: str, gallery: str) -> list[str]:
    """What a protocol's and a row's name add where options are not the usual ones."""
    marks = {COLD: gallery == COLD, "seen": seen == "keep", f"{negatives}-{sampling}": negatives is not None}
    return [mark for mark, applies in marks.items() if applies]


def _training(context: Context) -> dict[str, Any]:
    """What the row was trained for: a property of the row, not of the protocol."""
    if context.config is None or not context.config.stages:
        return {}
    objectives = list(context.config.stages.values())[-1].objectives
    losses = (f"{o.name} ({o.options['loss']})" if "loss" in o.options else o.name for o in objectives.values())
    return {
        "training": f"train events: {' + '.join(losses)}",
        "objectives": {key: objective.model_dump() for key, objective in objectives.items()},
    }


def log_of(catalogue: Catalogue, histories: Histories) -> str:
    """A name for what is measured on: product ids, histories and their splits."""
    parts = [_hash(array) for array in (histories.items.values, histories.items.offsets, histories.splits.values)]
    return f"{catalogue.name}-{digest([catalogue.ids, *parts], 8)}"


def _hash(numbers: np.ndarray) -> str:
    """Of integers: the same on every machine, whatever their type here."""
    return hashlib.sha256(np.ascontiguousarray(numbers, dtype="<i8").tobytes()).hexdigest()[:12]
