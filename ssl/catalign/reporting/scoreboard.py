"""Result files as tables for the report: this run's rows, with trivial baselines and published numbers beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from catalign.errors import CatalignError
from catalign.evaluation.base import Result, load_results
from catalign.reporting import plots
from catalign.reporting.tables import BASELINES, published_rows
from catalign.training.run import Run

HEADLINES = ("recall@10", "linear accuracy", "perplexity", "accuracy", "precision@10", "ndcg@10", "mrr")
"""Metrics for a tile or a bar chart, most telling first."""
HIGHER = (
    "recall",
    "hit",
    "hr",
    "precision",
    "mrr",
    "map",
    "ndcg",
    "accuracy",
    "macro_f1",
    "avg_recall",
    "avg_precision",
)
LOWER = ("loss", "perplexity", "median_rank")
"""Metrics with a better end, before any ``@k``; of others no best is marked."""
COLUMNS = ("recall@1", "recall@10", "mrr@10", "map", "ndcg@10", "median_rank", "hit@1", "hit@10")
"""Columns that come first where a table has many, so that they are seen without scrolling."""
NARROW = 4
"""Tables of fewer columns stand side by side."""
OPEN = 18
"""Lines of tables shown at once; further tables of a protocol are folded."""
KINDS = ("run", "baseline", "published")


@dataclass
class Line:
    """A row of a table: its name, group and kind, one value per seed and column, and the columns it is best in."""

    name: str
    group: str
    kind: str
    values: dict[str, list[float]]
    best: set[str] = field(default_factory=set)

    def mean(self, column: str) -> float | None:
        """Mean over the seeds, None where the row has no number or an infinite one."""
        values = self.values.get(column)
        mean = sum(values) / len(values) if values else math.nan
        return mean if math.isfinite(mean) else None

    def text(self, column: str) -> str:
        """What the cell shows: the mean, and the sample standard deviation of several seeds."""
        values, mean = self.values.get(column, []), self.mean(column)
        if mean is None:
            return "–"
        if len(values) == 1:
            return f"{mean:,g}" if "rank" in column else plots.decimal(mean)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return f"{plots.decimal(mean)} ± {plots.decimal(spread)}"


@dataclass
class Table:
    """One task: columns are metrics (or, for probes, attributes), lines are ordered by group and kind."""

    task: str
    columns: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def of_group(self, group: str, kind: str) -> list[Line]:
        """The lines of one group and kind."""
        return [line for line in self.lines if (line.group, line.kind) == (group, kind)]

    def sign(self, column: str) -> int:
        """1 where higher numbers of a column are better, -1 where lower ones are, 0 where neither is."""
        metric = (column if self.groups == [""] else self.task.split()[-1]).split("@")[0]
        return (metric in HIGHER) - (metric in LOWER)

    @property
    def groups(self) -> list[str]:
        """Groups in order of appearance."""
        return list(dict.fromkeys(line.group for line in self.lines))


def result_tables(run: Run) -> list[dict[str, Any]]:
    """One entry per protocol id, each with one table per task.

    Numbers of different protocol ids never share a table.

    Raises:
        CatalignError: The run has no results.
    """
    boards = []
    for folder in sorted((run.path / "results").glob("*/"), key=lambda folder: (folder.name == "pretext", folder.name)):
        by_protocol: dict[str, list[Result]] = {}
        for result in load_results(folder):
            by_protocol.setdefault(result.protocol["id"], []).append(result)
        ordered = sorted(by_protocol.values(), key=lambda results: len(results[0].row))
        boards += [_board(results) for results in ordered]
    if not boards:
        raise CatalignError("nothing has been evaluated in this run")
    return boards


def headline(boards: list[dict[str, Any]], most: int = 4) -> list[tuple[str, str, str]]:
    """A telling number of each benchmark: value, what it is, and the best trivial baseline beside it."""
    tiles: dict[str, tuple[str, str, str]] = {}
    for board in boards:
        if (found := _telling(board["tables"])) is None or board["benchmark"] in tiles:
            continue
        tiles[board["benchmark"]] = _tile(board, *found)
    return list(tiles.values())[:most]


def _tile(board: dict[str, Any], table: Table, column: str) -> tuple[str, str, str]:
    """A column's number; of a grouped table, that furthest above its baselines, in the groups with most of them."""
    beside = {group: len(table.of_group(group, "baseline")) for group in table.groups}
    columns = [column] if table.groups == [""] else table.columns
    lines = [line for line in table.lines if line.kind == "run" and beside[line.group] == max(beside.values())]
    line, chosen, baseline = max(
        ((line, key, _beside(table, line, key)) for line in lines for key in columns),
        key=lambda found: table.sign(found[1]) * ((found[0].mean(found[1]) or 0.0) - (found[2] or 0.0)),
    )
    what = ", ".join(filter(None, [table.task, chosen, line.group]))
    note = f"best trivial baseline {plots.decimal(baseline)}" if baseline is not None else board["protocol"]["name"]
    return line.text(chosen), f"{board['benchmark']}: {what}", note


def _board(results: list[Result]) -> dict[str, Any]:
    first = results[0]
    tables: dict[str, Table] = {}
    for result in results:
        _add(tables, result.row, "run", result.metrics)
    for result in results:
        for name, metrics in result.baselines.items():
            _add(tables, BASELINES.get(name, name), "baseline", metrics)
    known = published_rows(first.benchmark, first.protocol["id"])
    for row in known:
        metrics = {key: [value] for key, value in row["metrics"].items()}
        _add(tables, row["row"], "published", metrics, new_columns=False)
    ordered = sorted(tables.values(), key=lambda table: not table.task.startswith("linear"))
    for table in ordered:
        groups = table.groups
        table.lines.sort(key=lambda line: (groups.index(line.group), KINDS.index(line.kind)))
        table.columns.sort(key=lambda column: COLUMNS.index(column) if column in COLUMNS else len(COLUMNS))
        _mark_best(table)
    plain = (int, float, str)
    return {
        "benchmark": first.benchmark,
        "protocol": {key: value for key, value in first.protocol.items() if isinstance(value, plain)},
        "seeds": first.seeds,
        "sources": sorted({"; ".join(filter(None, [row.get("source"), row.get("training")])) for row in known} - {""}),
        "details": {key: value for key, value in first.details.items() if isinstance(value, plain)},
        "tables": ordered,
        "narrow": all(len(table.columns) < NARROW for table in ordered),
        "open": max(1, sum(total <= OPEN for total in accumulate(len(table.lines) for table in ordered))),
        "chart": _chart(first.benchmark, ordered),
    }


def _place(key: str) -> tuple[str, str, str]:
    """Where a metric key stands: table, group of rows, column.

    ``text-to-image/recall@10`` is a column of its task's table. A probe's ``article_type/image/linear/accuracy``
    stands in the table of linear accuracies, under the row ``image`` and the column ``article_type``.
    """
    parts = key.split("/")
    if len(parts) > 3:
        return " ".join(parts[2:]), parts[1], parts[0]
    return " ".join(parts[:-1]), "", parts[-1]


def _add(
    tables: dict[str, Table], name: str, kind: str, metrics: dict[str, list[float]], new_columns: bool = True
) -> None:
    for key, values in metrics.items():
        task, group, column = _place(key)
        if not new_columns and (task not in tables or column not in tables[task].columns):
            continue
        table = tables.setdefault(task, Table(task))
        if column not in table.columns:
            table.columns.append(column)
        line = next((line for line in table.of_group(group, kind) if line.name == name), None)
        if line is None:
            line = Line(name, group, kind, {})
            table.lines.append(line)
        line.values.setdefault(column, values)


def _mark_best(table: Table) -> None:
    """Note the best row of the run and its baselines in every column; published rows are for reference."""
    for group in table.groups:
        compete = table.of_group(group, "run") + table.of_group(group, "baseline")
        for column in table.columns:
            numbers = [table.sign(column) * mean for line in compete if (mean := line.mean(column)) is not None]
            for line in compete if len(numbers) > 1 and table.sign(column) else ():
                if (mean := line.mean(column)) is not None and table.sign(column) * mean == max(numbers):
                    line.best.add(column)


def _telling(tables: list[Table]) -> tuple[Table, str] | None:
    for name in HEADLINES:
        for table in tables:
            for column in table.columns:
                if name in (column, table.task):
                    return table, column
    return None


def _beside(table: Table, line: Line, column: str) -> float | None:
    """The best trivial baseline of a line."""
    numbers = [mean for other in table.of_group(line.group, "baseline") if (mean := other.mean(column)) is not None]
    return max(numbers, key=lambda number: table.sign(column) * number, default=None)


def _chart(benchmark: str, tables: list[Table]) -> dict[str, Any] | None:
    found = _telling(tables)
    if found is None or len(found[0].groups) > 1:
        return None
    table, column = found
    values = {line.name: mean for line in table.lines if (mean := line.mean(column)) is not None}
    if len(values) < 3:
        return None
    title = ", ".join(filter(None, [table.task, column])) + (" (lower is better)" if table.sign(column) < 0 else "")
    order = sorted(values, key=lambda name: -table.sign(column) * values[name])
    ours = [line.name for line in table.lines if line.kind == "run"]
    svg = plots.bars({name: values[name] for name in order}, ours, label=f"{benchmark}: {title}")
    return {"title": title, "svg": Markup(svg)}
