"""From a raw catalogue to a retrieval benchmark: the steps of an experiment, each skipped when nothing changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from catalign import registry
from catalign.artifacts import MANIFEST, alone, digest, is_sealed, read_json, unseal, write_json
from catalign.config import Component, Config, preset, presets
from catalign.data.catalogue import Catalogue
from catalign.data.history_batches import BEHAVIOUR
from catalign.data.interactions import LABELS
from catalign.data.store import EmbeddingStore
from catalign.embeddings.extract import Embedder
from catalign.embeddings.fusion import Fusion, fuse_store
from catalign.errors import CatalignError, unknown
from catalign.evaluation.base import Context, Skipped, save_results
from catalign.evaluation.base import evaluate as evaluate_protocol
from catalign.reporting.report import write_report
from catalign.retrieval import parts
from catalign.retrieval.index import Index
from catalign.training.content import check_content
from catalign.training.loaders import fields_of
from catalign.training.model import Model, check_stage, modalities_of, parents_of
from catalign.training.run import Run
from catalign.training.stage import is_finished, run_stage

console = Console(stderr=True, highlight=False)


def validate(config: Config) -> None:
    """Check every component of a config before any work, so that a typo costs seconds.

    Raises:
        CatalignError: An unknown component or option, or a stage that cannot be built.
    """
    registry.validate("source", config.data.source.name, config.data.source.options, "data.source")
    if config.data.fallback:
        registry.validate("source", config.data.fallback.name, config.data.fallback.options, "data.fallback")
    for name in config.stages:
        check_stage(config, name)
    registry.validate("fusion", config.fusion.name, config.fusion.options, "fusion")
    parts.make(64, config.index.factory)
    for name, component in config.evaluation.items():
        registry.validate("protocol", component.name, component.options, f"evaluation.{name}")


def run_experiment(config: Config) -> Run:
    """The whole pipeline: prepare, train every stage, embed, fuse, index, evaluate, report.

    Raises:
        CatalignError: As :func:`start`; or the last stage describes no products.
    """
    last = list(config.stages)[-1]
    objectives = [registry.get("objective", c.name) for c in config.stages[last].objectives.values()]
    if modalities_of(config, last) == [BEHAVIOUR] and not any(objective.scores_items for objective in objectives):
        problem = f"stages.{last} scores no products with its histories, so there would be nothing to embed"
        raise CatalignError(problem, "add next_item or masked_item to it, or only pretrain: catalign pretrain")
    run = start(config)
    train(run)
    embed(run)
    build_index(run)
    evaluate(run)
    report([run])
    return run


def start(config: Config) -> Run:
    """Check the config, prepare its catalogue and open its run folder.

    Raises:
        CatalignError: As :func:`validate` and :func:`check_against_catalogue`.
    """
    validate(config)
    began = time.perf_counter()
    catalogue = Catalogue.load(config.data)
    seconds = time.perf_counter() - began
    run = Run.create(config)
    run.note(catalogue=str(catalogue.path))
    if seconds > 1 or "prepare" not in run.record().get("steps", {}):  # else it was cached: keep the time it took
        run.note(steps={"prepare": round(seconds, 1)})
    console.print(f"[bold]{run.path}[/]  {catalogue!r}", soft_wrap=True)
    check_against_catalogue(run)
    return run


def check_against_catalogue(run: Run) -> None:
    """Check what only the catalogue can tell: that it has what stages and protocols read.

    Raises:
        CatalignError: A stage or protocol names a column that the catalogue lacks, or reads what no product has, or
            events of a split that has none.
    """
    config, catalogue = run.config, run.catalogue()
    rows = catalogue.rows("train")
    has = {"text": any(bool(tokens.lengths_of(rows).any()) for tokens in catalogue.tokens.values())}
    has["image"] = bool(catalogue.has_image[rows].any())
    has["behaviour"] = catalogue.histories is not None
    without = [name for name in config.stages if not all(has.get(m, True) for m in modalities_of(config, name))]
    if without:
        missing = next(m for m in modalities_of(config, without[0]) if not has.get(m, True))
        if missing == "behaviour":
            raise CatalignError(
                f"stages.{without[0]} reads behaviour, but catalogue {catalogue.name!r} has no histories",
                "name a log: data.interactions.path=FILE",
            )
        remedy = f"leave out what reads it: {' '.join(f'~stages.{name}' for name in without)}, or check data.columns"
        raise CatalignError(f"stages.{without[0]} reads {missing}, but no training product has any", remedy)
    if catalogue.histories is not None and any("behaviour" in modalities_of(config, name) for name in config.stages):
        chosen = [c.options.get("split", "test") for c in config.evaluation.values() if c.name == "sequential"]
        for split in dict.fromkeys(["val", *chosen]):
            if not len(catalogue.histories.part(LABELS[split]).values):
                problem = f"no event of the histories is held out for {split!r}"
                raise CatalignError(
                    problem, "raise data.interactions.val, test or cold; or take data.interactions.split=leave_one_out"
                )
    for name in config.stages:
        for key in ("text", "second_text"):
            for column in fields_of(run, name, key) or {}:
                if column not in catalogue.fields:
                    raise unknown(f"text column in stages.{name}.{key}", column, catalogue.fields)
        check_content(config, name, catalogue)
    for name, component in config.evaluation.items():
        for attribute in component.options.get("attributes") or []:
            if attribute not in catalogue.attributes:
                raise unknown(f"attribute in evaluation.{name}.attributes", attribute, catalogue.attributes)


def train(run: Run, stages: Sequence[str] | None = None) -> None:
    """Run stages in order, by default all of them."""
    for name in run.config.stages if stages is None else stages:
        began, same = time.perf_counter(), is_finished(run, name)
        run_stage(run, name)
        stage = f"stage {name} ({' + '.join(run.config.stages[name].objectives)})"
        seconds = time.perf_counter() - began
        console.print(f"[dim]same[/] {stage}" if same else f"[green]done[/] {stage} in {seconds:.0f} s")


def single_modality_stages(config: Config) -> list[str]:
    """The pretraining stages: those whose objectives read one modality and that start from no stage of several."""
    chosen: list[str] = []
    for name in config.stages:
        if len(modalities_of(config, name)) == 1 and set(parents_of(config, name)) <= set(chosen):
            chosen.append(name)
    return chosen


def embed(run: Run) -> EmbeddingStore:
    """Write the embedding store of the whole catalogue, and that of the same model before any training."""
    inputs = _embedding_inputs(run)
    _make(run, "embed", run.path / "embeddings", inputs, partial(_embed_with, run, run.model))
    if run.config.untrained:
        untrained = partial(_embed_with, run, run.untrained)
        _make(run, "embed the untrained baseline", run.path / "untrained", inputs, untrained)
    return EmbeddingStore.open(run.path / "embeddings")


def _embed_with(run: Run, model: Callable[[], Model], folder: Path, inputs: str) -> None:
    Embedder.from_run(run, model()).catalogue(run.catalogue(), folder, inputs=inputs)


def fuse(run: Run, store: EmbeddingStore) -> Fusion:
    """Fit the run's fusion on the training products of its embeddings, once."""
    component, catalogue = run.config.fusion, run.catalogue()

    def fit(folder: Path, inputs: str) -> None:
        rows = catalogue.rows("train")
        options = dict(component.options)
        if "seed" in registry.options("fusion", component.name):
            options.setdefault("seed", run.config.seed)
        fusion: Fusion = registry.build("fusion", component.name, where="fusion", **options)
        vectors = {str(name): store[name][rows] for name in store.modalities}
        present = {name: store.present(name)[rows] for name in vectors}
        fusion.fit(vectors, present, catalogue.groups[rows], progress=True)
        fusion.save(folder, inputs=inputs)

    inputs = digest([store.digest, component.model_dump(), run.config.seed])
    _make(run, "fuse", run.path / "fusion", inputs, fit)
    return Fusion.load(run.path / "fusion")


def build_index(run: Run) -> Index:
    """Index the fused vectors of every product and measure the index against exact search."""
    store, settings = EmbeddingStore.open(run.path / "embeddings"), run.config.index
    fusion = fuse(run, store)

    def build(folder: Path, inputs: str) -> None:
        vectors, known = fuse_store(fusion, store)
        ids, vectors = [store.ids[row] for row in known.nonzero()[0]], vectors[known]
        index = Index.build(
            vectors, ids, factory=settings.factory, nprobe=settings.nprobe, ef_search=settings.ef_search
        )
        index.save(folder, inputs=inputs, embeddings=store.digest, fusion=fusion.manifest["inputs"])
        write_json(run.path / "index_report.json", index.report(vectors[:1000], vectors))

    inputs = digest([fusion.manifest["inputs"], settings.model_dump()])
    _make(run, "index", run.path / "index", inputs, build)
    return Index.load(run.path / "index")


def context_of(run: Run) -> Context:
    """What a protocol reads: the run's catalogue, stores, fusion and query embedder."""
    folder = run.path / "embeddings"
    if not is_sealed(folder):
        raise CatalignError(f"{run.path} has no embeddings yet", f"make them: catalign embed {run.path}")
    if read_json(folder / MANIFEST).get("inputs") != _embedding_inputs(run):
        problem = f"{folder} was made by other weights, or from another catalogue, than the run has now"
        raise CatalignError(problem, f"make it again: catalign embed {run.path}")
    store, untrained = EmbeddingStore.open(folder), run.path / "untrained"
    return Context(
        catalogue=run.catalogue(),
        store=store,
        untrained=EmbeddingStore.open(untrained) if run.config.untrained and is_sealed(untrained) else None,
        fusion=fuse(run, store),
        embedder=Embedder.from_run(run),
        run=run,
        seed=run.config.seed,
    )


def evaluate(run: Run, protocols: Sequence[str] | None = None) -> list[Path]:
    """Run protocols, by default those of the config; each result is a JSON in ``results/``.

    One that is skipped, because its data are absent, or that fails stops no other.

    Raises:
        CatalignError: A protocol that does not exist, or one that failed.
    """
    context, outcomes = context_of(run), Outcomes()
    names = list(run.config.evaluation) if protocols is None else protocols
    try:
        written = [path for name in names for path in measure(context, name, outcomes)]
    finally:
        outcomes.tell()
    if outcomes.failed:
        report([run])  # the other protocols and the report are worth having all the same
        raise next(iter(outcomes.failed.values()))
    return written


@dataclass
class Outcomes:
    """What became of protocols that have no result, by name."""

    skipped: dict[str, Skipped] = field(default_factory=dict)
    failed: dict[str, CatalignError] = field(default_factory=dict)

    def tell(self) -> None:
        """Print the reasons, and what is needed."""
        for word, colour, reasons in (("skipped", "yellow", self.skipped), ("failed", "red", self.failed)):
            for name, reason in reasons.items():
                console.print(f"[{colour}]{word}[/] {name}: {escape(str(reason))}")


def protocol_of(config: Config, name: str) -> Component:
    """A protocol with the options that a config has for it, else with those of its YAML file, else with its defaults.

    Raises:
        CatalignError: There is no such protocol.
    """
    known = {*config.evaluation, *registry.names("protocol"), *presets("evaluation")}
    if name not in known:
        raise unknown("protocol", name, known)
    return config.evaluation.get(name) or Component.model_validate(preset("evaluation", name) or {"name": name})


def measure(context: Context, name: str, outcomes: Outcomes, folder: Path | None = None) -> list[Path]:
    """Run a protocol, with options as :func:`protocol_of` finds them.

    Args:
        context: What is measured, of a run.
        name: The protocol.
        outcomes: Told of a protocol that was skipped or failed.
        folder: For the results; by default the run's own.

    Returns:
        The result files, if it made some.

    Raises:
        CatalignError: There is no such protocol.
    """
    assert context.run is not None
    component = protocol_of(context.run.config, name)
    began = time.perf_counter()
    try:
        results = evaluate_protocol(context, component.name, **component.options)
    except Skipped as reason:
        outcomes.skipped[name] = reason
        return []
    except CatalignError as error:
        outcomes.failed[name] = error
        return []
    console.print(f"[green]done[/] evaluate {name} in {time.perf_counter() - began:.0f} s")
    return save_results(results, folder or context.run.path / "results" / name)


def report(runs: Sequence[Run], path: Path | None = None) -> Path:
    """Write the self-contained HTML report of a run, or of several beside each other."""
    path = write_report(runs, path)
    console.print(f"report: {path}")
    return path


def _embedding_inputs(run: Run) -> str:
    return digest([run.weights, run.catalogue().fingerprint])


def _make(run: Run, what: str, folder: Path, inputs: str, make: Callable[[Path, str], None]) -> None:
    """Make a sealed folder, whose manifest records ``inputs``, unless it was made from the same before."""
    if is_sealed(folder) and read_json(folder / MANIFEST).get("inputs") == inputs:
        unseal(folder, what, f"delete {folder} and run again")
        console.print(f"[dim]same[/] {what}")
        return
    began = time.perf_counter()
    with alone(run.path):
        make(folder, inputs)
    seconds = time.perf_counter() - began
    console.print(f"[green]done[/] {what} in {seconds:.0f} s")
    run.note(steps={folder.name: round(seconds, 1)})


def quiet_libraries() -> None:
    """Keep libraries from the network and from chatter that hides our own messages."""
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*|.*isinstance.*LeafSpec.*")
