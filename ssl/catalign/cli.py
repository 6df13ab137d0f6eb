"""``catalign COMMAND [overrides]``: argparse routes, Hydra composes. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalign import __version__
from catalign.errors import CatalignError, unknown

OVERRIDES = "Hydra overrides, such as experiment=fashion data.root=PATH stages.align.trainer.epochs=2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 when the input was wrong (the message says what and how to mend it), 130 when interrupted.
    """
    # Read when torch is first imported. Threads that spin while they wait take the cores from those they wait for: on
    # two cores with one other busy process, a step of a tiny encoder took 12.5 s spinning and 0.3 s sleeping.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if "overrides" in options and not any(word.startswith("-") for word in rest):
        options.overrides += rest  # argparse takes no positional words after an option: run a=1 -m seed=1,2
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.command(options) or 0
    except CatalignError as error:
        print(f"catalign: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # a reader such as head has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may Python's last flush fail
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"catalign: {error.filename}: {error.strerror}\n  -> choose another path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("catalign: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line, without importing anything slow."""
    parser = argparse.ArgumentParser(
        prog="catalign",
        description="Self-supervised multimodal embeddings of products: pretrain, align, index, benchmark.",
        epilog="Start with: catalign run   (the quickstart)   or   catalign list experiments",
    )
    parser.add_argument("--version", action="version", version=f"catalign {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    run = add("run", _run, "everything: prepare, train all stages, embed, index, evaluate, report")
    run.add_argument("overrides", nargs="*", help=OVERRIDES)
    run.add_argument("-m", "--multirun", action="store_true", help="sweep, Hydra's way: seed=1,2,3")
    for name, command, text in (
        ("data", _data, "prepare a catalogue and describe it"),
        ("pretrain", _pretrain, "train the stages of a single modality"),
        ("align", _align, "train every stage up to and including alignment"),
        ("config", _config, "print the composed config"),
    ):
        add(name, command, text).add_argument("overrides", nargs="*", help=OVERRIDES)

    for name, command, text in (
        ("embed", _embed, "write the embedding store of a trained run"),
        ("index", _index, "fuse and index a run's embeddings, and measure the index"),
        ("report", _report, "write a run's HTML report"),
    ):
        add(name, command, text).add_argument("run", type=Path, help="a run folder")

    search = add("search", _search, "search a run's index by text, image or product")
    search.add_argument("run", type=Path, help="a run folder")
    search.add_argument("--text", help="words to search for")
    search.add_argument("--image", help="a photo to search with")
    search.add_argument("--item", help="the id of a product: more like this one")

    recommend = add("recommend", _recommend, "recommend products to someone who bought or viewed others")
    recommend.add_argument("run", type=Path, help="a run folder")
    recommend.add_argument("history", nargs="+", metavar="ID", help="product ids, oldest first")
    recommend.add_argument("--seen", action="store_true", help="recommend products of the history too")
    for sub in (search, recommend):
        sub.add_argument("-k", type=int, default=10, help="how many products (10)")
        sub.add_argument("--filter", action="append", default=[], metavar="ATTRIBUTE=VALUE", help="keep only these")

    bench = add("bench", _bench, "run a benchmark protocol on trained runs; several runs are its seeds")
    bench.add_argument("protocol", help="its name; see: catalign list protocols")
    bench.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    bench.add_argument("-o", "--output", type=Path, help="folder for the merged result JSON, one file per row")

    export = add("export", _export, "write a run's encoders for transformers and timm")
    export.add_argument("run", type=Path, help="a run folder")
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to write")

    listing = add("list", _list, "list what configs may name")
    listing.add_argument("kind", help="objectives, encoders, protocols, fusions, sources, experiments")
    listing.add_argument("-v", "--verbose", action="store_true", help="with summary and options")

    tables = add("tables", _tables, "write the result tables of README and benchmarks from their JSON files")
    tables.add_argument("--check", action="store_true", help="only say whether they differ")
    return parser


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


def _run(options: argparse.Namespace) -> None:
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


def _data(options: argparse.Namespace) -> None:
    from catalign.data.catalogue import Catalogue

    catalogue = Catalogue.load(_compose(options.overrides).data)
    print(catalogue)
    print(catalogue.path)


def _pretrain(options: argparse.Namespace) -> None:
    from catalign import pipeline

    pipeline.quiet_libraries()
    run = pipeline.start(_compose(options.overrides))
    pipeline.train(run, pipeline.single_modality_stages(run.config))


def _align(options: argparse.Namespace) -> None:
    from catalign import pipeline

    pipeline.quiet_libraries()
    pipeline.train(pipeline.start(_compose(options.overrides)))


def _config(options: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(_compose(options.overrides).model_dump(mode="json")))


def _open(path: Path) -> Any:
    from catalign import pipeline
    from catalign.training.run import Run

    pipeline.quiet_libraries()
    return Run.open(path)


def _embed(options: argparse.Namespace) -> None:
    from catalign.pipeline import embed

    print(embed(_open(options.run)))


def _index(options: argparse.Namespace) -> None:
    from catalign.pipeline import build_index

    print(build_index(_open(options.run)))


def _report(options: argparse.Namespace) -> None:
    from catalign.pipeline import report

    report(_open(options.run))


def _search(options: argparse.Namespace) -> None:
    from catalign.retrieval.retriever import Retriever

    retriever, filters = Retriever.from_run(_open(options.run).path), _filters(options.filter)
    print(retriever.search(text=options.text, image=options.image, item=options.item, filters=filters, k=options.k))


def _recommend(options: argparse.Namespace) -> None:
    from catalign.retrieval.retriever import Retriever

    retriever, filters = Retriever.from_run(_open(options.run).path), _filters(options.filter)
    print(retriever.recommend(options.history, k=options.k, exclude_seen=not options.seen, filters=filters))


def _filters(given: Sequence[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for pair in given:
        attribute, equals, value = pair.partition("=")
        if not equals:
            raise CatalignError(f"--filter {pair!r} has no '='", "write --filter base_colour=Red")
        filters.setdefault(attribute, []).append(value)
    return filters


def _bench(options: argparse.Namespace) -> None:
    from catalign.evaluation.base import Result, merge, save_results
    from catalign.pipeline import evaluate, show

    if options.output and options.output.exists() and not options.output.is_dir():
        raise CatalignError(f"--output {options.output} is a file", "name a folder: one JSON per row is written there")
    rows: dict[str, list[Result]] = {}
    for path in options.runs:
        for written in evaluate(_open(path), [options.protocol]):
            rows.setdefault(written.stem, []).append(Result.load(written))
    if not rows:
        raise CatalignError(f"protocol {options.protocol!r} wrote no result", "see the reason above")
    merged = [merge(results) for results in rows.values()]
    if options.output:
        save_results(merged, options.output)
    for result in merged:
        show(result)


def _export(options: argparse.Namespace) -> None:
    from catalign.training.export import export

    for path in export(_open(options.run), options.output):
        print(path)


def _list(options: argparse.Namespace) -> None:
    from catalign import registry
    from catalign.config import config_folder

    kind = options.kind.removesuffix("s")
    if kind == "experiment":
        for path in sorted((config_folder() / "experiment").glob("*.yaml")):
            comment = path.read_text(encoding="utf-8").splitlines()
            print(
                f"{path.stem:<16}",
                next((line[2:] for line in comment if line.startswith("# ") and "@" not in line), ""),
            )
        return
    if kind not in registry.PACKAGES:
        raise unknown("kind", options.kind, [*(f"{name}s" for name in registry.PACKAGES), "experiments"])
    for name in registry.names(kind):
        print(registry.describe(kind, name, verbose=options.verbose))


def _tables(options: argparse.Namespace) -> int:
    from catalign.reporting.tables import write_tables

    return write_tables(check=options.check)


if __name__ == "__main__":
    sys.exit(main())
