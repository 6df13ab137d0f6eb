"""The report: one HTML file that shows what a run did and how well, or how several compare, without a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2

from catalign import __version__
from catalign.artifacts import atomic, read_json
from catalign.errors import CatalignError
from catalign.reporting import answers, dataset_card, learning, panels, plots, recipe, scoreboard, svg
from catalign.reporting.comparison import Variant, variants
from catalign.training.run import Run

logger = logging.getLogger(__name__)

PAGE = "report.html"
INDEX = {
    "recall": ("recall against exact search", "", "share of the true nearest that it finds"),
    "qps": ("queries per second", "", "in one batch"),
    "ms": ("one query alone", "ms", "search only, without embedding"),
    "megabytes": ("size", "MB", "in memory"),
    "products": ("products", "", "with their fused vectors"),
}
"""Numbers of an index report -> what each is, its unit and a note."""
DONE = {"fused": "fusion", "indexed": "index", "evaluated": "results"}
"""What has been done with a run's embeddings, and the folder that shows it."""
OWN = ("monitors", "inpainting", "words", "map", "index")
"""Sections about one run's model, which a comparison leaves to the runs' own reports."""
Plan = tuple[str, str, Callable[[], Any], str]
"""A section to be: its key, its title, what builds it, the command that makes its inputs."""


@dataclass
class Section:
    """A part of the report: what it shows, or what is absent and the command that makes it."""

    key: str
    title: str
    data: Any = None
    missing: str | None = None
    command: str | None = None


def write_report(runs: Sequence[Run], path: str | Path | None = None) -> Path:
    """Write the report of a run, or of several beside each other, as one self-contained HTML file.

    A part whose inputs are absent says so and names the command that makes them; a part that cannot be drawn says why.
    Neither stops the report.

    Args:
        runs: Runs, finished or not; those that differ in nothing but their seed are merged.
        path: Where to write; by default ``report.html`` in the folder of a single run, in this folder for several.

    Returns:
        The file's path.

    Raises:
        CatalignError: A run is given twice.
    """
    compared, several = variants(runs), len(runs) > 1
    path = Path(path or (PAGE if several else runs[0].path / PAGE))
    sections = [_section(*plan) for plan in _plan(compared, several) if not (several and plan[0] in OWN)]
    html = (
        environment(several)
        .get_template("report.html.j2")
        .render(
            compared=compared,
            run=runs[0],
            config=runs[0].config,
            synthetic=any(run.config.data.source.name == "synthetic" for run in runs),
            sections=sections,
            headline=_headline(sections),
            done=[word for word, folder in DONE.items() if (runs[0].path / folder).is_dir()],
        )
    )
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _plan(compared: Sequence[Variant], several: bool) -> list[Plan]:
    """Sections in reading order."""
    run = compared[0].first
    again = run.command()
    embed = f"catalign embed {run.path} && catalign index {run.path}"
    curves = partial(learning.race, compared) if several else partial(learning.training, run)
    searched = cache(partial(answers.retrieval, compared))
    return [
        ("run", "What ran", partial(recipe.recipes, compared), again),
        ("catalogue", "Catalogue", partial(dataset_card.cards, compared), again),
        ("training", "Training", curves, again),
        ("monitors", "Monitors", partial(learning.monitors, run), again),
        ("results", "Results", partial(scoreboard.result_tables, compared), again),
        ("retrieval", "Retrieval on test products", searched, embed),
        ("failures", "Hardest queries", searched, embed),
        ("inpainting", "Inpainting", lambda: learning.inpainting(run, run.catalogue()), again),
        ("words", "Masked words", lambda: learning.words(run, run.catalogue()), again),
        ("map", "Map", lambda: panels.embedding_map(run, run.catalogue()), embed),
        ("index", "Index", partial(index_report, run), f"catalign index {run.path}"),
    ]


def _section(key: str, title: str, build: Callable[[], Any], command: str) -> Section:
    try:
        return Section(key, title, data=build())
    except CatalignError as error:
        return Section(key, title, missing=error.problem, command=error.remedy or command)
    except Exception as error:  # the last step of a long run: a figure that fails must not cost the other nine
        logger.warning("report: section %r could not be made", key, exc_info=True)
        return Section(key, title, missing=f"could not be made: {type(error).__name__}: {error}", command=command)


def index_report(run: Run) -> dict[str, Any]:
    """What ``index`` measured of the index it built."""
    path = run.path / "index_report.json"
    if not path.is_file():
        raise CatalignError("no index has been built for this run")
    report = read_json(path)
    named = {name: report[name] for name in INDEX if name in report}
    return {
        "tiles": [(_with_unit(value, INDEX[name][1]), *INDEX[name][::2]) for name, value in named.items()],
        "others": [(name.replace("_", " "), value) for name, value in report.items() if name not in INDEX],
        "factory": run.config.index.factory,
    }


def _with_unit(value: float, unit: str) -> str:
    return f"{plots.decimal(value)} {unit}".strip()


def _headline(sections: list[Section]) -> list[tuple[str, str, str]]:
    """The numbers at the top: value, what it is, and a note."""
    data = {section.key: section.data for section in sections}
    tiles = []
    if catalogues := data["catalogue"]:
        first, *others = [card["facts"] for card in catalogues["cards"]]
        splits = ", ".join(f"{n:,} {split}" for split, n in first["splits"].items())
        unlike = f"in one of {1 + len(others)} catalogues" if others else splits
        tiles.append((f"{first['products']:,}", "products", unlike))
    if ran := data["run"]:
        stages = [stage for run in ran["runs"].values() for stage in run["stages"]]
        done = f"{sum(stage['done'] for stage in stages)} of {len(stages)} stages finished"
        tiles.append((recipe.duration(sum(stage["seconds"] or 0 for stage in stages)), "training", done))
    return tiles + scoreboard.headline(data["results"]["boards"] if data["results"] else [])


def environment(several: bool = False) -> jinja2.Environment:
    """The templates of HTML pages, which escape whatever they are given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("catalign.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        duration=recipe.duration, count=recipe.count, decimal=plots.decimal, variable=svg.variable
    )
    environment.globals.update(several=several, shown=answers.SHOWN, narrow=scoreboard.NARROW, version=__version__)
    return environment
