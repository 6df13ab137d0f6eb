"""The run report: one HTML file that shows what a run did and how well, without a network."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from catalign import __version__
from catalign.artifacts import atomic, read_json
from catalign.errors import CatalignError
from catalign.reporting import learning, panels, plots, scoreboard
from catalign.training.run import Run

logger = logging.getLogger(__name__)

INDEX = {
    "recall": ("recall against exact search", "", "share of the true nearest that it finds"),
    "qps": ("queries per second", "", "in one batch"),
    "ms": ("one query alone", "ms", "search only, without embedding"),
    "megabytes": ("size", "MB", "in memory"),
    "products": ("products", "", "with their fused vectors"),
}
"""Numbers of an index report -> what each is, its unit and a note."""
SAMPLES = 16
HARDWARE = {"cpu": "Processor", "cores": "Cores", "memory_gb": "Memory, GB", "gpu": "GPU"}


@dataclass
class Section:
    """A part of the report: what it shows, or what is absent and the command that makes it."""

    key: str
    title: str
    data: Any = None
    missing: str | None = None
    command: str | None = None


@dataclass
class Source:
    """What sections read: the run, and its catalogue, opened once."""

    run: Run
    record: dict[str, Any] = field(default_factory=dict)
    _catalogue: Any = None

    @property
    def catalogue(self) -> Any:
        """The run's catalogue."""
        if self._catalogue is None:
            self._catalogue = self.run.catalogue()
        return self._catalogue


def write_report(run: Run, path: str | Path | None = None) -> Path:
    """Write a run's report as one self-contained HTML file.

    A part whose inputs are absent says so and names the command that makes them; a part that cannot be drawn says why.
    Neither stops the report.

    Args:
        run: The run, finished or not.
        path: Where to write; ``report.html`` in the run folder by default.

    Returns:
        The file's path.
    """
    path = Path(path) if path is not None else run.path / "report.html"
    source = Source(run, run.record())
    sections = [_section(source, *plan) for plan in _plan(run)]
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            record=source.record,
            config=run.config,
            sections=sections,
            headline=_headline(sections),
            shown=panels.SHOWN,
            narrow=scoreboard.NARROW,
            version=__version__,
        )
    )
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _plan(run: Run) -> list[tuple[str, str, Callable[[Source], Any], str]]:
    """Sections in reading order: key, title, what builds it, the command that makes its inputs."""
    again, folder = f"catalign run experiment={run.config.name}", str(run.path)
    bench = " && ".join(f"catalign bench {name} {folder}" for name in run.config.evaluation) or again
    embed = f"catalign embed {folder} && catalign index {folder}"
    return [
        ("run", "What ran", what_ran, again),
        ("catalogue", "Catalogue", catalogue_card, again),
        ("training", "Training", lambda source: learning.training(source.run), again),
        ("monitors", "Monitors", lambda source: learning.monitors(source.run), again),
        ("results", "Results", lambda source: scoreboard.result_tables(source.run), bench),
        (
            "retrieval",
            "Retrieval on test products",
            lambda source: panels.retrieval(source.run, source.catalogue),
            embed,
        ),
        ("inpainting", "Inpainting", lambda source: learning.inpainting(source.run, source.catalogue), again),
        ("words", "Masked words", lambda source: learning.words(source.run, source.catalogue), again),
        ("map", "Map", lambda source: panels.embedding_map(source.run, source.catalogue), embed),
        ("index", "Index", index_report, f"catalign index {folder}"),
    ]


def _section(source: Source, key: str, title: str, build: Callable[[Source], Any], command: str) -> Section:
    try:
        return Section(key, title, data=build(source))
    except CatalignError as error:
        return Section(key, title, missing=error.problem, command=error.remedy or command)
    except Exception as error:  # the last step of a long run: a figure that fails must not cost the other nine
        logger.warning("report: section %r could not be made", key, exc_info=True)
        return Section(key, title, missing=f"could not be made: {type(error).__name__}: {error}", command=command)


def what_ran(source: Source) -> dict[str, Any]:
    """Command, stages, versions and hardware of a run."""
    config, record = source.run.config, source.record
    if not record:
        raise CatalignError("the run folder has no run.json, so what ran is not recorded")
    stages = []
    for name, stage in config.stages.items():
        noted = record.get("stages", {}).get(name, {})
        parameters = noted.get("parameters", {})
        stages.append(
            {
                "name": name,
                "objectives": [(key, part.weight) for key, part in stage.objectives.items()],
                "locked": stage.locked,
                "seconds": noted.get("seconds"),
                "parameters": parameters if isinstance(parameters, dict) else {"model": parameters},
                "trainer": config.trainer_of(name),
                "done": name in source.run.stages,
            }
        )
    measured: dict[str, Any] = next(
        (read_json(path) for path in sorted((source.run.path / "results").glob("*/*.json"))), {}
    )
    hardware = record.get("hardware") or measured.get("hardware") or {}
    return {
        "stages": stages,
        "hardware": {HARDWARE.get(name, name): value for name, value in hardware.items() if value is not None},
        "versions": record.get("versions") or measured.get("versions") or {},
        "config": json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False),
    }


def catalogue_card(source: Source) -> dict[str, Any]:
    """Counts, splits, groups, gaps and some products of the catalogue."""
    catalogue = source.catalogue
    facts = catalogue.describe()
    total = max(len(catalogue), 1)
    sizes = np.bincount(catalogue.groups)
    pictured = np.flatnonzero(catalogue.has_image)
    rows = np.sort(np.random.default_rng(0).choice(pictured, min(SAMPLES, len(pictured)), replace=False))
    attributes = []
    for name, values in catalogue.attributes.items():
        present = [str(value) for value in values if value]
        attributes.append((name, len(set(present)), plots.most_common(present, 3)))
    bad = dict(facts["quarantine"])
    return {
        "name": catalogue.name,
        "facts": facts,
        "largest": int(sizes.max(initial=0)),
        "gaps": [(name, n, n / total) for name, n in facts["missing"].items() if n],
        "attributes": attributes,
        "bad_rows": bad.pop("rows"),
        "bad_kinds": bad,
        "samples": [panels.card(catalogue, row) for row in rows],
    }


def index_report(source: Source) -> dict[str, Any]:
    """What ``index`` measured of the index it built."""
    path = source.run.path / "index_report.json"
    if not path.is_file():
        raise CatalignError("no index has been built for this run")
    report = read_json(path)
    named = {name: report[name] for name in INDEX if name in report}
    return {
        "tiles": [(_with_unit(value, INDEX[name][1]), *INDEX[name][::2]) for name, value in named.items()],
        "others": [(name.replace("_", " "), value) for name, value in report.items() if name not in INDEX],
        "factory": source.run.config.index.factory,
    }


def _with_unit(value: float, unit: str) -> str:
    return f"{plots.decimal(value)} {unit}".strip()


def _headline(sections: list[Section]) -> list[tuple[str, str, str]]:
    """The numbers at the top: value, what it is, and a note."""
    data = {section.key: section.data for section in sections}
    tiles = []
    if card := data["catalogue"]:
        splits = ", ".join(f"{n:,} {split}" for split, n in card["facts"]["splits"].items())
        tiles.append((f"{card['facts']['products']:,}", "products", splits))
    if ran := data["run"]:
        seconds = sum(stage["seconds"] or 0 for stage in ran["stages"])
        done = sum(stage["done"] for stage in ran["stages"])
        tiles.append((duration(seconds), "training", f"{done} of {len(ran['stages'])} stages finished"))
    return tiles + scoreboard.headline(data["results"] or [])


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: ``41 s``, ``12 min``, ``1 h 05``."""
    if seconds is None:
        return "not recorded"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def count(number: float) -> str:
    """A count in few characters: ``950``, ``1.2 M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def environment() -> jinja2.Environment:
    """The templates of HTML pages, which escape whatever they are given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("catalign.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration, count=count, decimal=plots.decimal)
    return environment
