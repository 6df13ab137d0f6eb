"""``catalign COMMAND [overrides]``: the command line, which argparse reads and :mod:`catalign.commands` carries out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from catalign import __version__, commands
from catalign.errors import CatalignError

Command = Callable[[argparse.Namespace], int | None]
Add = Callable[..., argparse.ArgumentParser]
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
    words = next((name for name in ("overrides", "runs") if name in options), None)
    if words and not any(word.startswith("-") for word in rest):
        vars(options)[words] += rest  # argparse takes no positional words after an option: run a=1 -m seed=1,2
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
    words = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(command: Command, *, run: bool = False) -> argparse.ArgumentParser:
        """A command by its function's name, with its docstring as help and perhaps a run folder to work on."""
        text = (command.__doc__ or "").splitlines()[0].removesuffix(".")
        sub = words.add_parser(command.__name__.removesuffix("_"), help=text[0].lower() + text[1:], description=text)
        sub.set_defaults(command=command)
        if run:
            sub.add_argument("run", type=Path, help="a run folder")
        return sub

    for group in (_train, _find, _mend, _measure):
        group(add)
    return parser


def _train(add: Add) -> None:
    for command in (commands.run, commands.data, commands.pretrain, commands.align, commands.config):
        sub = add(command)
        sub.add_argument("overrides", nargs="*", help=OVERRIDES)
        if command is commands.run:
            sub.add_argument("-m", "--multirun", action="store_true", help="sweep, Hydra's way: seed=1,2,3")
    for command in (commands.embed, commands.index):
        add(command, run=True)


def _find(add: Add) -> None:
    search = add(commands.search, run=True)
    search.add_argument("--text", help="words to search for")
    search.add_argument("--image", help="a photo to search with")
    search.add_argument("--item", help="the id of a product: more like this one")

    recommend = add(commands.recommend, run=True)
    recommend.add_argument("history", nargs="+", metavar="ID", help="product ids, oldest first")
    recommend.add_argument("--seen", action="store_true", help="recommend products of the history too")
    for sub in (search, recommend):
        sub.add_argument("-k", type=int, default=10, help="how many products (10)")
        sub.add_argument("--filter", action="append", default=[], metavar="ATTRIBUTE=VALUE", help="keep only these")

    demo = add(commands.demo, run=True)
    demo.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    demo.add_argument("--port", type=int, default=7860, help="port to listen at (7860)")


def _mend(add: Add) -> None:
    enhance = add(commands.enhance, run=True)
    enhance.add_argument("table", type=Path, help="Parquet, CSV or JSON lines with the columns of the run's catalogue")
    enhance.add_argument("-o", "--output", type=Path, required=True, help="proposals: a .csv, .jsonl or .parquet file")
    enhance.add_argument("--attribute", action="append", metavar="NAME", help="propose only this one (repeat for more)")
    enhance.add_argument("--precision", type=float, default=0.95, help="share that must be right on val (0.95)")
    enhance.add_argument("--images", help="folder of the photos, where the image column holds paths")

    audit = add(commands.audit, run=True)
    audit.add_argument("-n", "--count", type=int, default=100, help="how many listings (100)")
    audit.add_argument("--category", metavar="ATTRIBUTE", help="the attribute of categories (the most telling one)")
    audit.add_argument("-o", "--output", type=Path, help="folder for audit.html and audit.csv (RUN/audit)")


def _measure(add: Add) -> None:
    report = add(commands.report)
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders; seeds of one config are merged")
    where = "file to write: by default report.html, in the folder of a single run, in this folder for several"
    report.add_argument("-o", "--output", type=Path, help=where)

    bench = add(commands.bench)
    bench.add_argument("protocol", help="its name (see: catalign list protocols), or all: those whose data are there")
    words = "run folders, several are its seeds; result files of other seeds; options: evaluation.images.folder=PATH"
    bench.add_argument("runs", nargs="+", metavar="RUN", help=words)
    where = "folder for the merged result JSON, one file per row; of all, in folders of the protocols' names"
    bench.add_argument("-o", "--output", type=Path, help=where)

    export = add(commands.export, run=True)
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to write; one in it per library")
    libraries = "hf, timm, sentence-transformers, onnx, safetensors; the first, second and last by default"
    export.add_argument("--to", nargs="+", metavar="LIBRARY", help=libraries)

    listing = add(commands.list_)
    listing.add_argument("kind", help="objectives, encoders, protocols, fusions, sources, experiments")
    listing.add_argument("-v", "--verbose", action="store_true", help="with summary, papers, options and presets")
    for sub in (bench, listing):
        sub.add_argument("--plugin", action="append", default=[], metavar="PACKAGE", help="your own package, if any")

    new = add(commands.new)
    new.add_argument("kind", choices=["objective", "protocol"], help="a pretext task or a benchmark protocol")
    new.add_argument("name", help="its name in configs")
    new.add_argument("--package", help="your own package; needed outside of a checkout of catalign")

    tables = add(commands.tables)
    tables.add_argument("--check", action="store_true", help="only say whether they differ")


if __name__ == "__main__":
    sys.exit(main())
