"""One line per task: what we reach, what the best baseline reaches, and whether the difference is sure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from catalign.errors import unknown
from catalign.evaluation.base import Result, load_results
from catalign.reporting.specs import published_rows, spec_of
from catalign.reporting.tables import ABSENT, BASELINES, Table, lower_is_better

HEADER = ["task", "metric", "best baseline", "reaches", "ours", "difference", "95% interval", "ours is"]


def overview_table(folders: Sequence[Path]) -> Table:
    """The benchmarks whose ``spec.yaml`` has ``overview`` and that have results, one line each.

    ``overview`` holds ``task`` in words, the ``protocol``'s name, the ``row`` of results that stands for ours, the
    ``metric``'s key and its ``label``, and perhaps ``digits`` (3). Baselines and published rows compete at that key,
    and at those in ``beside``: some see one side of a product only, or judge it in one way only.

    Intervals are those of the result file's paired bootstrap against this baseline, averaged over seeds. Without one,
    whether ours is ahead is untested.

    Raises:
        CatalignError: There is no such row or metric.
    """
    lines = [_line(folder) for folder in folders]
    return Table(HEADER, [line for line in lines if line])


def _line(folder: Path) -> list[str]:
    wanted = spec_of(folder).get("overview")
    if wanted is None:
        return []
    results = [r for r in load_results(folder / "results") if r.protocol["name"] == wanted["protocol"]]
    if not results:
        return []
    rows, key, digits = {result.row: result for result in results}, wanted["metric"], wanted.get("digits", 3)
    if wanted["row"] not in rows:
        raise unknown(f"row of results in {folder / 'spec.yaml'}, overview:", wanted["row"], rows)
    result = rows[wanted["row"]]
    if key not in result.metrics:
        raise unknown(f"metric in {folder / 'spec.yaml'}, overview:", key, result.metrics)
    name, at, number = _best_baseline(folder, result, [key, *wanted.get("beside", [])])
    ours, tests = result.mean(key), result.significance.get("ours", {})
    sides = [tests.get(f"{key}/minus/{name}/{side}", []) for side in ("low", "high")] if at == key else []
    bounds = [sum(side) / len(side) for side in sides if side]
    interval = f"{bounds[0]:+.{digits}f} to {bounds[1]:+.{digits}f}" if bounds else ABSENT
    link = f"[{wanted['task']}](benchmarks/{folder.name}/README.md)"
    numbers = [f"{number:.{digits}f}", f"{ours:.{digits}f}", f"{ours - number:+.{digits}f}"]
    return [link, wanted["label"], BASELINES.get(name, name), *numbers, interval, _outcome(key, ours - number, bounds)]


def _best_baseline(folder: Path, result: Result, keys: Sequence[str]) -> tuple[str, str, float]:
    """A result's strongest competitor at any of some metrics: its name, that metric, and what it reaches."""
    means = {name: {key: sum(v) / len(v) for key, v in metrics.items()} for name, metrics in result.baselines.items()}
    for row in published_rows(folder.name, result.protocol["id"], folder.parents[1]):
        means[f"{row['row']} (published)"] = row["metrics"]
    found = [(name, key, metrics[key]) for name, metrics in means.items() for key in keys if key in metrics]
    return (min if lower_is_better(keys[0]) else max)(found, key=lambda entry: entry[2])


def _outcome(key: str, difference: float, bounds: Sequence[float]) -> str:
    if bounds and bounds[0] <= 0 <= bounds[1]:
        return "level"
    better = difference < 0 if lower_is_better(key) else difference > 0
    return ("ahead" if better else "**behind**") + ("" if bounds else ", untested")
