"""A number is a file: what was measured, how, on what, and the trivial baselines beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from catalign import registry
from catalign.artifacts import digest, read_json, write_json
from catalign.config import Config
from catalign.data.catalogue import Catalogue
from catalign.data.store import EmbeddingStore
from catalign.embeddings.extract import Embedder
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.embeddings.fusion.weighted import PUBLISHED, Weighted
from catalign.errors import CatalignError
from catalign.provenance import describe_hardware, describe_versions, differences, git_revision, portable
from catalign.training.run import Run

Vectors = tuple[np.ndarray, np.ndarray]
"""``(N, D)`` vectors and ``(N,)`` bool, which of the products have one."""

Metrics = dict[str, Any]
"""Flat metric keys, such as ``"text-to-image/recall@10"``, to one value per seed: a list, or a number when made."""

TIES = "score descending, then gallery row ascending"


class Skipped(CatalignError):
    """A protocol does not apply to this run, for a reason that is no mistake; the pipeline says so and goes on."""


class TextEmbedder(Protocol):
    """What protocols need of an Embedder: queries to vectors."""

    def text(self, texts: list[str]) -> np.ndarray:
        """Texts as ``(n, D)`` unit vectors."""


class QueryEmbedder(TextEmbedder, Protocol):
    """An Embedder of texts and photos."""

    def knows(self, texts: list[str]) -> np.ndarray:
        """``(n,)`` bool, whether :meth:`TextEmbedder.text` can embed a text."""

    def images(self, photos: list[Any]) -> np.ndarray:
        """Photos ``(H, W, 3)`` uint8 as ``(n, D)`` unit vectors."""

    def image_features(self, photos: list[Any]) -> np.ndarray:
        """Photos as the image encoder's own features ``(n, D)``."""


@dataclass
class Context:
    """What a protocol may read of one run.

    Attributes:
        catalogue: The prepared catalogue.
        store: The run's embeddings, one row per product of the catalogue.
        untrained: The same model's embeddings before any training; None leaves that baseline out.
        fusion: The run's fitted fusion; None leaves fused directions out.
        embedder: Embeds queries with the run's model.
        untrained_embedder: Embeds queries with the untrained model; by default made from the run when asked for.
        run: The run: its config, finished stages and record. None for stores that no run made.
        name: The row's name in tables; the experiment's name if empty.
        seed: The run's seed.
    """

    catalogue: Catalogue
    store: EmbeddingStore
    untrained: EmbeddingStore | None = None
    fusion: Fusion | None = None
    embedder: QueryEmbedder | None = None
    untrained_embedder: QueryEmbedder | None = None
    run: Run | None = None
    name: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        self.name = self.name or (self.run.config.name if self.run else "run")

    @property
    def config(self) -> Config | None:
        """The run's config."""
        return self.run.config if self.run else None

    def fused(self, store: EmbeddingStore, own: bool = True) -> Vectors:
        """Fused vectors ``(N, D)`` of a store and which products have one ``(N,)``.

        Args:
            store: Embeddings to fuse.
            own: By the run's fusion; otherwise by the published weights, .9 image + .1 text.
        """
        return fuse_store(self.fuser(store, own), store)

    def fuser(self, store: EmbeddingStore, own: bool = True) -> Fusion:
        """What :meth:`fused` fuses a store with."""
        if own and self.fusion is not None:
            return self.fusion
        return Weighted(weights=PUBLISHED).fit({name: store[name] for name in store.modalities})

    def queries(self, modality: str, vectors: np.ndarray) -> np.ndarray:
        """Queries of one modality ``(Q, D)`` as the run's fusion places them among fused documents ``(Q, D')``."""
        return vectors if self.fusion is None else self.fusion({modality: vectors})

    def untrained_queries(self) -> QueryEmbedder | None:
        """The untrained model's embedder, if there is an untrained store to compare its queries with."""
        if self.untrained_embedder is None and self.untrained is not None and self.run is not None:
            self.untrained_embedder = Embedder.from_run(self.run, self.run.untrained())
        return self.untrained_embedder

    def parameters(self) -> int | None:
        """Number of weights in the encoders of the last finished stage."""
        record = self.run.record().get("stages", {}) if self.run else {}
        finished = [
            record[name] for name in (self.run.stages if self.run else ()) if "parameters" in record.get(name, {})
        ]
        return sum(finished[-1]["parameters"].values()) if finished else None


@dataclass
class Result:
    """The metrics of one row under one protocol: of one seed, or of several after :func:`merge`.

    Attributes:
        benchmark: The protocol function's name, such as ``"kagl"``.
        row: The row's name in tables and its file's name.
        protocol: ``id`` and every choice that the id stands for; made by the function ``protocol``.
        metrics: Metric key to one value per seed (a bare number becomes a list of one).
        baselines: Name to metrics, in the same form.
        details: Counts that explain the metrics: queries, gallery, what was left out.
        seeds: The seeds, in the order of the values.
        wall_clock_s: Seconds the number took, from preparing the data to this evaluation, summed over the seeds.
        significance: Intervals and paired tests in the same form, of ``"ours"`` and of baselines by name; see
            :func:`catalign.evaluation.significance.significance`.
    """

    benchmark: str
    row: str
    protocol: dict[str, Any]
    metrics: Metrics
    baselines: dict[str, Metrics] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    wall_clock_s: float = 0.0
    git: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    significance: dict[str, Metrics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics = _values(self.metrics)
        self.baselines = {name: _values(metrics) for name, metrics in self.baselines.items()}
        self.significance = {name: _values(metrics) for name, metrics in self.significance.items()}
        if not self.metrics:
            raise CatalignError(f"{self.benchmark}: no metric was computed for row {self.row!r}")

    def mean(self, key: str) -> float:
        """Mean over the seeds of one metric."""
        return float(np.mean(self.metrics[key]))

    def _repr_html_(self) -> str:
        """The means in a notebook: metrics down, ours and the baselines across."""
        columns = {"ours": self.metrics, **self.baselines}
        means = {name: {key: np.mean(values) for key, values in metrics.items()} for name, metrics in columns.items()}
        table = pd.DataFrame(means, index=list(self.metrics)).round(4).to_html(na_rep="")
        title = f"{self.benchmark}: {self.row} ({self.protocol.get('id')}, {len(self.seeds)} seed(s))"
        return f"<p>{escape(title)}</p>{table}"

    def to_json(self) -> dict[str, Any]:
        """The file form: every metric as mean, sample standard deviation (0 for one seed) and values."""
        form = {**asdict(self), "metrics": summary(self.metrics)}
        named = {"baselines": self.baselines, "significance": self.significance}
        return form | {key: {name: summary(m) for name, m in rows.items()} for key, rows in named.items() if rows}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Result:
        """The inverse of :meth:`to_json`.

        Raises:
            CatalignError: A key is missing or unknown.
        """
        try:
            metrics = {key: entry["values"] for key, entry in form["metrics"].items()}
            named = {
                key: {name: {k: e["values"] for k, e in m.items()} for name, m in form.get(key, {}).items()}
                for key in ("baselines", "significance")
            }
            return cls(**{**form, "metrics": metrics, **named})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CatalignError(f"not a result file: {error}", "make it again with: catalign bench") from None

    def save(self, path: str | Path) -> None:
        """Write the file form, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a result file.

        Raises:
            CatalignError: The file is absent or not a result.
        """
        return cls.from_json(read_json(path))


def _values(metrics: Mapping[str, Any]) -> Metrics:
    return {key: [float(v) for v in (value if isinstance(value, list) else [value])] for key, value in metrics.items()}


def summary(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Metrics in file form: ``{key: {"mean", "std", "values"}}``, rounded to six decimals."""
    form = {}
    for key, values in metrics.items():
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        form[key] = {
            "mean": round(float(np.mean(values)), 6),
            "std": round(std, 6),
            "values": [round(v, 6) for v in values],
        }
    return form


def protocol(benchmark: str, variant: str = "", **choices: Any) -> dict[str, Any]:
    """A protocol's record: every choice, and an ``id`` that is a readable name and a digest over all of them."""
    name = "-".join(filter(None, [benchmark, variant]))
    return {"id": f"{name}-{digest({'name': name, **choices}, 8)}", "name": name, **choices}


def data_of(catalogue: Catalogue, *attributes: str) -> str:
    """A name for what a protocol measures on: ids, splits, groups and attributes, not how they were prepared."""
    columns = [catalogue.ids, np.asarray(catalogue.splits).tolist(), np.asarray(catalogue.groups).tolist()]
    columns += [np.asarray(catalogue.attributes[name]).tolist() for name in attributes]
    return f"{catalogue.name}-{digest(columns, 8)}"


def evaluate(context: Context, name: str, **options: Any) -> list[Result]:
    """Run a registered protocol and stamp its results with seed, hardware, versions, time, revision and config.

    Raises:
        Skipped: The protocol does not apply to this run.
        CatalignError: Unknown protocol or option.
    """
    start = time.perf_counter()
    results: list[Result] = registry.build("protocol", name, context, where=f"evaluation.{name}", **options)
    seconds = time.perf_counter() - start
    hardware, versions, git = describe_hardware(), describe_versions(), git_revision()
    config = portable(context.config) if context.config else {}
    steps = {**_seconds_before(context.run), "evaluate": round(seconds, 1)}
    for result in results:
        result.seeds, result.wall_clock_s = [context.seed], round(sum(steps.values()), 1)
        result.hardware, result.versions, result.git, result.config = hardware, versions, git, config
        result.details = {"parameters": context.parameters(), "seconds": steps, **result.details}
    return results


def _seconds_before(run: Run | None) -> dict[str, float]:
    """Seconds of every step that a run's numbers rest on; a resumed stage counts all of its sessions."""
    if run is None:
        return {}
    record = run.record()
    stages = {name: record.get("stages", {}).get(name, {}).get("seconds", 0.0) for name in run.stages}
    return {**record.get("steps", {}), **stages}


def merge(results: Sequence[Result]) -> Result:
    """One row's results of several seeds as one result.

    Raises:
        CatalignError: They differ in row, protocol or config beyond the seed, or a seed occurs twice.
    """
    if not results:
        raise CatalignError("no results to merge")
    results = sorted(results, key=lambda result: result.seeds)
    first = results[0]
    for what in ("benchmark", "row"):
        if len(found := {getattr(result, what) for result in results}) > 1:
            raise CatalignError(f"results of different {what}s cannot be merged: {', '.join(sorted(found))}")
    one_protocol(results)
    # The protocol's id holds the options that matter; those of other protocols may differ.
    if differ := differences([result.config for result in results], "seed", "evaluation"):
        problem = f"row {first.row!r}: the configs differ in more than the seed: {', '.join(differ)}"
        raise CatalignError(problem, "give the rows other names, or make all seeds with one config")
    seeds = [seed for result in results for seed in result.seeds]
    if len(set(seeds)) < len(seeds):
        raise CatalignError(f"row {first.row!r}: a seed occurs twice in {seeds}", "give each run of a row its own seed")
    return Result(
        **{
            **asdict(first),
            "seeds": seeds,
            "metrics": _joined([result.metrics for result in results], first.row),
            **{
                key: {
                    name: _joined([getattr(result, key)[name] for result in results], f"{first.row}, {key}: {name}")
                    for name in getattr(first, key)
                    if all(name in getattr(result, key) for result in results)
                }
                for key in ("baselines", "significance")
            },
            **{key: _each([getattr(result, key) for result in results]) for key in ("hardware", "versions")},
            "git": _distinct([result.git for result in results]),
            "wall_clock_s": sum(result.wall_clock_s for result in results),
        }
    )


def _each(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: _distinct([record.get(key) for record in records]) for record in records for key in record}


def _distinct(values: Sequence[Any]) -> Any:
    """The value that all seeds have, or in words those that there are: seeds may come from several machines."""
    if len(set(values)) == 1:
        return values[0]
    return ", ".join(dict.fromkeys(part for value in values for part in str(value).split(", ")))  # some are merged ones


def _joined(metrics: Sequence[Metrics], where: str) -> Metrics:
    if len({frozenset(m) for m in metrics}) > 1:
        raise CatalignError(f"{where}: the seeds have different metrics")
    return {key: [value for m in metrics for value in m[key]] for key in metrics[0]}


def one_protocol(results: Iterable[Result]) -> str:
    """The protocol id that all results share.

    Raises:
        CatalignError: They have different protocols; the message names the choices that differ.
    """
    protocols = {result.protocol["id"]: result.protocol for result in results}
    if len(protocols) > 1:
        first, second = list(protocols.values())[:2]
        differ = [key for key in {**first, **second} if key != "id" and first.get(key) != second.get(key)]
        raise CatalignError(
            f"numbers of different protocols cannot stand in one column: {', '.join(sorted(protocols))}",
            f"they differ in: {', '.join(differ)}",
        )
    return next(iter(protocols))


def save_results(results: Iterable[Result], folder: str | Path) -> list[Path]:
    """Write each result as ``<folder>/<row>.json``; the paths written."""
    paths = []
    for result in results:
        paths.append(Path(folder) / f"{result.row}.json")
        result.save(paths[-1])
    return paths


def load_results(folder: str | Path) -> list[Result]:
    """The results in a folder and the folders in it, by path; none if the folder is absent."""
    return [Result.load(path) for path in sorted(Path(folder).rglob("*.json"))]
