"""Few-shot episodes: tell apart kinds of product that alignment has never seen, from one or five examples of each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from catalign.artifacts import digest
from catalign.data.store import EmbeddingStore
from catalign.errors import unknown
from catalign.evaluation.base import Context, QueryEmbedder, Result, Skipped, protocol
from catalign.evaluation.baselines import raw_pixels, tfidf
from catalign.evaluation.inputs import data_file, text_vectors, training
from catalign.evaluation.learners import META, PLAIN, Pool, Shape, accuracies, draw_episodes
from catalign.evaluation.masking import Mask
from catalign.evaluation.significance import RECORD, compared
from catalign.registry import register
from catalign.retrieval.neighbours import Features

INPUTS = ("text", "image", "fused")
ICECAT = Path("icecat-search") / "products.parquet"

Views = dict[str, dict[str, Features]]
"""Row of the table (``ours`` or a baseline) to input to features of all products."""


class Classes(NamedTuple):
    """Products of classes that are large enough, one of each group: their rows, class numbers, and class names."""

    rows: np.ndarray
    labels: np.ndarray
    names: list[str]


class Setting(NamedTuple):
    """What is the same for every row: shapes of episodes, how many and their seed, inputs and methods."""

    shapes: list[Shape]
    episodes: int
    seed: int
    inputs: list[str]
    methods: list[str]


@register("protocol", "few_shot")
def few_shot(
    context: Context,
    *,
    attribute: str = "article_type",
    ways: int = 5,
    shots: list[int] = [1, 5],  # noqa: B006 - never changed
    queries: int = 15,
    episodes: int = 600,
    inputs: list[str] | None = None,
    methods: list[str] | None = None,
    icecat: str | None = None,
    seed: int = 0,
) -> list[Result]:
    """Tell apart kinds of product that alignment has not seen, from a few examples of each (Vinyals et al. 2016).

    Data: products whose value of ``attribute`` every aligning stage leaves out (``stages.NAME.without``), of all
    splits, since none was trained on; one product of each group, those with a photo and a primary text of which a known
    word is left once the words of all values of the attribute are removed. An episode draws ``ways`` classes, and of
    each ``shots`` products to learn from and ``queries`` to tell apart; all rows answer the same episodes.

    Methods: ``centroid``, the nearest mean by cosine; ``linear``, logistic regression on unit vectors (Tian et al.
    2020, https://arxiv.org/abs/2003.11539). Meta-learned, from the labels of the other classes' train products:
    ``protonet``, a linear map before the centroid (Snell et al. 2017, https://arxiv.org/abs/1703.05175); ``maml``, a
    linear map and a classifier that five gradient steps adapt, first order (Finn et al. 2017,
    https://arxiv.org/abs/1703.03400). A fifth of those classes chooses when to stop; the run's seed draws it.

    Transfer, a protocol of its own (row ``<name>-icecat``), where its data are there: brands of Icecat's electronics
    told from their titles without brand names. Encoder and meta-learned maps are those of this catalogue.

    Metrics, keyed ``<ways>-way-<shots>-shot/<input>/<method>/accuracy``: the mean over episodes, with its 95% interval
    and paired tests over episodes (``significance``).

    Baselines under the same keys: ``random``, ``pixels`` (photos averaged to 16 × 12), ``tfidf`` (masked texts),
    ``untrained`` (the same model before training).

    Args:
        context: What is measured.
        attribute: The column whose values are classes.
        ways: Classes of an episode.
        shots: Labelled products of each class.
        queries: Products of each class to tell apart.
        episodes: Episodes drawn.
        inputs: Of text, image and fused; null for all.
        methods: Of centroid, linear, protonet and maml; null for all.
        icecat: The other catalogue's file, if elsewhere.
        seed: Draws the episodes.

    Raises:
        Skipped: Alignment has seen all values of the attribute, or text or photo embeddings are missing.
        CatalignError: An unknown attribute, input or method, or too few classes of enough products.
    """
    for what, given, known in (("inputs", inputs, INPUTS), ("methods", methods, [*PLAIN, *META])):
        for name in given or []:
            if name not in known:
                raise unknown(f"name in evaluation.few_shot.{what}:", name, known)
    if context.embedder is None or not {"text", "image"} <= set(context.store.names):
        raise Skipped("few_shot needs text and photo embeddings, and this run lacks one of them")
    shapes = [Shape(ways, k, queries) for k in shots]
    setting = Setting(shapes, episodes, seed, inputs or list(INPUTS), methods or [*PLAIN, *META])
    novel, base, views = _prepared(context, attribute, max(shots) + queries)
    results = [_measure(context, setting, novel, views, (base, views), attribute=attribute)]
    if "text" in setting.inputs:
        results += _transferred(context, setting, icecat, (base, views))
    return results


def held_out(context: Context, attribute: str) -> list[str]:
    """The values of an attribute that every stage with texts and photos leaves out.

    Raises:
        Skipped: There are none.
    """
    stages = context.config.stages.values() if context.config else ()
    aligning = [stage for stage in stages if any(c.name == "contrastive" for c in stage.objectives.values())]
    left_out = [set(stage.without.get(attribute, [])) for stage in aligning]
    if not (common := set.intersection(*left_out) if left_out else set()):
        raise Skipped(
            f"few_shot: alignment has seen all values of {attribute}",
            f"leave some out: stages.align.without={{{attribute}: […]}}, as experiment=few_shot does",
        )
    return sorted(common)


def _prepared(context: Context, attribute: str, few: int) -> tuple[Classes, Classes, Views]:
    """The new classes, the others' train products, and every row's features."""
    catalogue, embedder = context.catalogue, context.embedder
    assert embedder is not None
    is_new = catalogue.having(attribute, held_out(context, attribute))
    column = np.asarray(catalogue.attributes[attribute]).astype(str)
    mask = Mask(set(column.tolist()) - {""})
    texts = [mask(text) for text in catalogue.text(next(iter(catalogue.fields)))]
    usable = context.store.present("image") & embedder.knows(texts) & (column != "")
    one = np.zeros(len(catalogue), dtype=bool)
    one[np.unique(np.where(usable, catalogue.groups, -1), return_index=True)[1]] = True
    usable = usable & one
    novel = classes_of(np.flatnonzero(usable & is_new), column, few)
    base = classes_of(np.flatnonzero(usable & ~is_new & (catalogue.splits == "train")), column, few)
    views: Views = {"ours": _embedded(context, context.store, embedder, texts, own=True)}
    if context.untrained is not None and (untrained := context.untrained_queries()) is not None:
        views["untrained"] = _embedded(context, context.untrained, untrained, texts, own=False)
    views["tfidf"] = {"text": tfidf(texts)[0]}
    views["pixels"] = {"image": raw_pixels(catalogue, np.arange(len(catalogue)))}
    return novel, base, views


def _embedded(
    context: Context, store: EmbeddingStore, embedder: QueryEmbedder, texts: list[str], own: bool
) -> dict[str, Features]:
    vectors = {"text": text_vectors(embedder, texts), "image": np.asarray(store["image"])}
    return {**vectors, "fused": context.fuser(store, own)(vectors)}


def classes_of(rows: np.ndarray, column: np.ndarray, few: int) -> Classes:
    """The rows whose value in a column of all products occurs among them ``few`` times or more."""
    names, counts = np.unique(column[rows], return_counts=True)
    kept = names[counts >= few]
    rows = rows[np.isin(column[rows], kept)]
    return Classes(rows, np.searchsorted(kept, column[rows]), kept.tolist())


def _measure(
    context: Context, setting: Setting, novel: Classes, views: Views, base: tuple[Classes, Views], **choices: Any
) -> Result:
    """Every input and method of ours, and what baselines do without meta-learning."""
    cases: dict[str, dict[str, np.ndarray]] = {row: {} for row in views}
    learned, learned_from = base
    for shape in setting.shapes:
        drawn = list(islice(draw_episodes(novel.labels, shape, setting.seed), setting.episodes))
        for row, name in ((row, name) for row, view in views.items() for name in setting.inputs if name in view):
            features = views[row][name][novel.rows]
            for method in setting.methods:
                if method in META and row != "ours":
                    continue
                learner = PLAIN.get(method)
                if learner is None:
                    pool = Pool(learned_from[row][name][learned.rows], learned.labels)
                    learner = META[method](pool, shape, context.seed)
                key = f"{shape.ways}-way-{shape.shots}-shot/{name}/{method}/accuracy"
                cases[row][key] = accuracies(learner, features, drawn)
    ours = cases.pop("ours")
    means = {row: {key: float(values.mean()) for key, values in found.items()} for row, found in cases.items()}
    record = protocol(
        "few_shot",
        choices.pop("variant", ""),
        data=digest([context.catalogue.name, novel.names, novel.rows.tolist()], 8),
        classes=novel.names,
        masked="words of any class, in the primary text",
        shapes=[shape._asdict() for shape in setting.shapes],
        episodes=setting.episodes,
        episode_seed=setting.seed,
        **choices,
        significance=RECORD,
    )
    return Result(
        "few_shot",
        "-".join(filter(None, [context.name, record["name"].removeprefix("few_shot").strip("-")])),
        record,
        {key: float(values.mean()) for key, values in ours.items()},
        {"random": dict.fromkeys(ours, 1 / setting.shapes[0].ways), **means},
        {
            "products": len(novel.rows),
            "meta_learning": {"classes": len(learned.names), "products": len(learned.rows)},
            "training": training(context),
        },
        significance=compared(ours, cases),
    )


def _transferred(context: Context, setting: Setting, given: str | None, base: tuple[Classes, Views]) -> list[Result]:
    """The other catalogue's result; none where its data are not there."""
    try:
        path = data_file(context, "few_shot.icecat", given, ICECAT, "columns title, supplier; github.com/o19s/chorus")
    except Skipped:
        return []
    table = pd.read_parquet(path, columns=["title", "supplier"]).fillna("").drop_duplicates("title")
    column = table["supplier"].to_numpy().astype(str)
    mask, embedder = Mask(set(column.tolist()) - {""}), context.embedder
    assert embedder is not None
    texts = [mask(title) for title in table["title"]]
    few = max(shape.shots + shape.queries for shape in setting.shapes)
    novel = classes_of(np.flatnonzero(embedder.knows(texts) & (column != "")), column, few)
    views: Views = {"ours": {"text": text_vectors(embedder, texts)}}
    if (untrained := context.untrained_queries()) is not None:
        views["untrained"] = {"text": text_vectors(untrained, texts)}
    views["tfidf"] = {"text": tfidf(texts)[0]}
    return [_measure(context, setting, novel, views, base, variant="icecat", attribute="supplier")]
