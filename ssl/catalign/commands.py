"""What each command of the command line does; Hydra composes configs. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalign.errors import CatalignError, needed, unknown


def _compose(overrides: Sequence[str]) -> Any:
    from catalign.config import compose

    config = compose(overrides)
    for override in overrides:
        key = override.removeprefix("trainer.").partition("=")[0]
        stages = [name for name, stage in config.stages.items() if key in stage.trainer]
        if override.startswith("trainer.") and stages:
            others = "" if len(stages) < len(config.stages) else ", so this changes nothing"
            note = f"note: {', '.join(stages)} set their own {key}{others}; use stages.{stages[0]}.trainer.{key}=…"
            print(f"catalign: {note}", file=sys.stderr)
    return config


def run(options: argparse.Namespace) -> None:
    """Everything: prepare, train all stages, embed, index, evaluate, report."""
    from catalign.pipeline import quiet_libraries, run_experiment

    quiet_libraries()
    if options.multirun:
        _sweep(options.overrides)
    else:
        run_experiment(_compose(options.overrides))


def _sweep(overrides: Sequence[str]) -> None:
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from catalign.config import check, config_folder, permissive
    from catalign.pipeline import run_experiment, validate

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    first = [
        f"{o.get_key_element()}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else str(o.input_line)
        for o in parsed
    ]
    validate(_compose(first))  # Hydra reports mistakes with a traceback; find them before it starts
    sys.argv = ["catalign run", "-m", *map(permissive, overrides)]

    failed: list[CatalignError] = []

    def job(composed: Any) -> None:
        try:
            run_experiment(check(composed))
        except CatalignError as error:  # the other runs of the sweep go on
            print(f"catalign: {error}", file=sys.stderr)
            failed.append(error)

    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()
    if failed:
        raise CatalignError(f"{len(failed)} runs of the sweep failed", "see the reasons above")


def data(options: argparse.Namespace) -> None:
    """Prepare a catalogue and describe it."""
    from catalign.data.catalogue import Catalogue

    catalogue = Catalogue.load(_compose(options.overrides).data)
    print(catalogue)
    print(catalogue.path)


def pretrain(options: argparse.Namespace) -> None:
    """Train the stages of a single modality."""
    from catalign import pipeline

    pipeline.quiet_libraries()
    run = pipeline.start(_compose(options.overrides))
    pipeline.train(run, pipeline.single_modality_stages(run.config))


def align(options: argparse.Namespace) -> None:
    """Train all stages, without embedding or measuring anything."""
    from catalign import pipeline

    pipeline.quiet_libraries()
    pipeline.train(pipeline.start(_compose(options.overrides)))


def config(options: argparse.Namespace) -> None:
    """Print the composed config."""
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(_compose(options.overrides).model_dump(mode="json")))


def _open(path: Path) -> Any:
    from catalign import pipeline
    from catalign.training.run import Run

    pipeline.quiet_libraries()
    return Run.open(path)


def embed(options: argparse.Namespace) -> None:
    """Write the embedding store of a trained run."""
    from catalign.pipeline import embed

    print(embed(_open(options.run)))


def index(options: argparse.Namespace) -> None:
    """Fuse and index a run's embeddings, and measure the index."""
    from catalign.pipeline import build_index

    print(build_index(_open(options.run)))


def report(options: argparse.Namespace) -> None:
    """Write the HTML report of a run, or of several side by side."""
    from catalign.pipeline import report

    if options.output and options.output.is_dir():
        raise CatalignError(f"--output {options.output} is a folder", f"name a file: {options.output / 'report.html'}")
    report([_open(Path(path)) for path in options.runs], options.output)


def search(options: argparse.Namespace) -> None:
    """Search a run's index by text, image or product."""
    from catalign.retrieval.retriever import Retriever

    retriever, filters = Retriever.from_run(_open(options.run)), _filters(options.filter)
    print(retriever.search(text=options.text, image=options.image, item=options.item, filters=filters, k=options.k))


def recommend(options: argparse.Namespace) -> None:
    """Recommend products to someone who bought or viewed others."""
    from catalign.retrieval.retriever import Retriever

    retriever, filters = Retriever.from_run(_open(options.run)), _filters(options.filter)
    print(retriever.recommend(options.history, k=options.k, exclude_seen=not options.seen, filters=filters))


def demo(options: argparse.Namespace) -> None:
    """Serve a search page for a run."""
    needed("gradio", "demo")
    from catalign.reporting.demo import serve

    serve(_open(options.run), options.host, options.port)


def enhance(options: argparse.Namespace) -> None:
    """Propose values for the missing attributes of a table's products."""
    from rich.console import Console

    from catalign.data import quarantine
    from catalign.data.incoming import incoming
    from catalign.retrieval.enhance import Enhancer, check_output, write
    from catalign.retrieval.retriever import Retriever

    check_output(options.output)
    if options.output.resolve() == options.table.resolve():
        raise CatalignError(f"--output {options.output} is the table itself", "name another file")
    run, report = _open(options.run), options.output.with_suffix(".quarantine.csv")
    enhancer = Enhancer(Retriever.from_run(run), options.attribute, options.precision)
    wanted = list(enhancer.supports)
    with incoming(options.table, run.config.data, attributes=wanted, images=options.images) as products:
        proposals = enhancer(products)
    write(proposals, options.output)
    quarantine.write(report, products.bad)
    Console().print(enhancer.summary(proposals))
    print(f"{options.output}\n{report}: {len(products.bad)} rows were left out")


def audit(options: argparse.Namespace) -> None:
    """List a catalogue's most suspicious listings, with the reasons."""
    from rich.console import Console

    from catalign.reporting.audit import terminal, write_audit
    from catalign.retrieval.audit import Audit
    from catalign.retrieval.retriever import Retriever
    from catalign.training.likelihood import language_model

    if options.count < 1:
        raise CatalignError(f"--count {options.count} asks for no listing", "ask for 1 or more")
    run = _open(options.run)
    retriever = Retriever.from_run(run)
    suspects = Audit(retriever, language_model(run), options.category).suspects(options.count)
    Console().print(terminal(suspects[:20]))
    for path in write_audit(retriever.catalogue, suspects, options.output or run.path / "audit"):
        print(path)


def _filters(given: Sequence[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for pair in given:
        attribute, equals, value = pair.partition("=")
        if not equals:
            raise CatalignError(f"--filter {pair!r} has no '='", "write --filter ATTRIBUTE=VALUE")
        filters.setdefault(attribute, []).append(value)
    return filters


def bench(options: argparse.Namespace) -> None:
    """Run a benchmark protocol, or all of them, on trained runs."""
    from catalign import plugins
    from catalign.bench import bench
    from catalign.evaluation.base import Result

    plugins.use(options.plugin)
    if options.output and options.output.exists() and not options.output.is_dir():
        raise CatalignError(f"--output {options.output} is a file", "name a folder: one JSON per row is written there")
    overrides = [word for word in options.runs if word.startswith("evaluation.")]
    named = [Path(word) for word in options.runs if word not in overrides]
    for word in (word for word in named if "=" in str(word) and not word.exists()):
        remedy = "options are written evaluation.PROTOCOL.OPTION=VALUE"
        raise CatalignError(f"{str(word)!r} is neither a run nor an option of a protocol", remedy)
    files = [path for path in named if path.suffix == ".json"]
    runs = [_open(path) for path in named if path not in files]
    if not named:
        raise CatalignError("no run is named", f"catalign bench {options.protocol} RUN {' '.join(overrides)}")
    bench(runs, options.protocol, overrides, options.output, measured=[Result.load(path) for path in files])


def export(options: argparse.Namespace) -> None:
    """Write a run's encoders for other libraries."""
    from catalign.training.export import export

    for path in export(_open(options.run), options.output, options.to):
        print(path)


def list_(options: argparse.Namespace) -> None:
    """List what configs may name."""
    from catalign import listing, plugins, registry
    from catalign.config import config_folders

    plugins.use(options.plugin)
    kind = options.kind.removesuffix("s")
    if kind == "experiment":
        for path in (path for folder in config_folders() for path in sorted((folder / kind).glob("*.yaml"))):
            print(listing.experiment(path))
        return
    if kind not in registry.PACKAGES:
        raise unknown("kind", options.kind, [*(f"{name}s" for name in registry.PACKAGES), "experiments"])
    for name in registry.names(kind):
        print(listing.describe(kind, name, verbose=options.verbose))


def new(options: argparse.Namespace) -> None:
    """Start a pretext task or a protocol: its file, its YAML and a test that fails until it is written."""
    from catalign.scaffold import write

    written, following = write(options.kind, options.name, options.package)
    for path in written:
        print(f"wrote {path}")
    print("next:", *following, sep="\n  ")


def tables(options: argparse.Namespace) -> int:
    """Write the result tables of README and benchmarks from their JSON files."""
    from catalign.reporting.readmes import write_tables

    return write_tables(check=options.check)
