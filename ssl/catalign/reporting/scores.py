"""Results of one protocol as tables: rows of runs with trivial baselines and published numbers beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catalign.evaluation.base import Result
from catalign.reporting import plots
from catalign.reporting.tables import BASELINES

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
    "auc",
)
LOWER = ("loss", "log_loss", "calibration_error", "perplexity", "median_rank")
"""Metrics with a better end, before any ``@k``; of others no best is marked."""
COLUMNS = ("recall@1", "recall@10", "mrr@10", "map", "ndcg@10", "median_rank", "hit@1", "hit@10")
"""Columns that come first where a table has many, so that they are seen without scrolling."""
KINDS = ("run", "baseline", "published")


@dataclass
class Line:
    """A row of a table: its name, group and kind, one value per seed and column, and the columns it is best in.

    ``intervals`` holds what the result itself says of how sure a column's number is: (low, high).
    """

    name: str
    group: str
    kind: str
    values: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)

    @property
    def seeds(self) -> int:
        """Number of seeds behind each number."""
        return max(map(len, self.values.values()))

    def mean(self, column: str) -> float | None:
        """Mean over the seeds, None where the row has no number or an infinite one."""
        values = self.values.get(column)
        mean = sum(values) / len(values) if values else math.nan
        return mean if math.isfinite(mean) else None

    def text(self, column: str) -> str:
        """What the cell shows: the mean, and the sample standard deviation where seeds differ."""
        values, mean = self.values.get(column, []), self.mean(column)
        if mean is None:
            return "–"
        if len(values) > 1 and (spread := statistics.stdev(values)):
            return f"{plots.decimal(mean)} ± {plots.decimal(spread)}"
        return f"{mean:,g}" if "rank" in column else plots.decimal(mean)

    def span(self, column: str) -> tuple[float, float] | None:
        """Ends of a whisker: a standard deviation over several seeds to either side, or else the result's interval."""
        values = self.values.get(column, [])
        if len(values) < 2:
            return self.intervals.get(column)
        mean, spread = statistics.mean(values), statistics.stdev(values)
        return mean - spread, mean + spread


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
    def heads(self) -> list[Line]:
        """One line of each name, runs first: the columns of the turned table."""
        found: dict[tuple[str, str], Line] = {}
        for line in self.lines:
            found.setdefault((line.kind, line.name), line)
        return sorted(found.values(), key=lambda line: KINDS.index(line.kind))

    def turned(self) -> list[tuple[str, str, list[Line | None]]]:
        """The table turned: a group and a column, and the line of each of :attr:`heads` in that group."""
        lines = {(line.kind, line.name, line.group): line for line in self.lines}
        return [
            (group, column, [lines.get((head.kind, head.name, group)) for head in self.heads])
            for group in self.groups
            for column in self.columns
        ]

    @property
    def groups(self) -> list[str]:
        """Groups in order of appearance."""
        return list(dict.fromkeys(line.group for line in self.lines))


def tables_of(results: Sequence[Result], published: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table per task of results of one protocol.

    Args:
        results: Results of different rows.
        published: Published rows of the same protocol; they add no column of their own.
    """
    tables: dict[str, Table] = {}
    for result in results:
        _add(tables, result.row, "run", result.metrics, intervals=result.significance.get("ours"))
    for name in dict.fromkeys(name for result in results for name in result.baselines):
        found = {result.row: result.baselines[name] for result in results if name in result.baselines}
        rounded = [{key: round(statistics.mean(v), 3) for key, v in metrics.items()} for metrics in found.values()]
        label, agree = BASELINES.get(name, name), all(numbers == rounded[0] for numbers in rounded)
        for row, metrics in list(found.items())[: 1 if agree else None]:
            _add(tables, label if agree else f"{label} of {row}", "baseline", metrics)
    for known in published:
        metrics = {key: [value] for key, value in known["metrics"].items()}
        _add(tables, known["row"], "published", metrics, new_columns=False)
    ordered = sorted(tables.values(), key=lambda table: not table.task.startswith("linear"))
    for table in ordered:
        groups = table.groups
        table.lines.sort(key=lambda line: (groups.index(line.group), KINDS.index(line.kind)))
        table.columns.sort(key=lambda column: COLUMNS.index(column) if column in COLUMNS else len(COLUMNS))
        _mark_best(table)
    return ordered


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
    tables: dict[str, Table],
    name: str,
    kind: str,
    metrics: Mapping[str, list[float]],
    *,
    intervals: Mapping[str, list[float]] | None = None,
    new_columns: bool = True,
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
            line = Line(name, group, kind)
            table.lines.append(line)
        line.values[column] = values
        if intervals and f"{key}/low" in intervals:
            line.intervals[column] = (
                statistics.mean(intervals[f"{key}/low"]),
                statistics.mean(intervals[f"{key}/high"]),
            )


def _mark_best(table: Table) -> None:
    """Note the best row of the run and its baselines in every column; published rows are for reference."""
    for group in table.groups:
        compete = table.of_group(group, "run") + table.of_group(group, "baseline")
        for column in table.columns:
            numbers = [table.sign(column) * mean for line in compete if (mean := line.mean(column)) is not None]
            for line in compete if len(numbers) > 1 and table.sign(column) else ():
                if (mean := line.mean(column)) is not None and table.sign(column) * mean == max(numbers):
                    line.best.add(column)
