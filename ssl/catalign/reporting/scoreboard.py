"""Result files of runs as boards for the report: tables and bars, one board per protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from catalign.errors import CatalignError
from catalign.evaluation.base import Result, merge, one_protocol
from catalign.reporting import plots
from catalign.reporting.comparison import Variant, each, every
from catalign.reporting.scores import Line, Table, tables_of
from catalign.reporting.specs import published_rows
from catalign.training.run import Run

HEADLINES = ("recall@10", "linear accuracy", "perplexity", "accuracy", "precision@10", "ndcg@10", "mrr")
"""Metrics for a tile or a bar chart, most telling first."""
NARROW = 4
"""Tables of fewer columns stand side by side."""
OPEN = 18
"""Lines of tables shown at once; further tables of a protocol are folded."""


def result_tables(compared: Sequence[Variant]) -> dict[str, Any]:
    """Results of all variants, seeds merged.

    Returns:
        ``boards``, one per protocol id, each with a table per task, so that numbers of different protocol ids never
        share a table; and ``notes`` on results that are absent, cannot be merged or were measured in other ways.

    Raises:
        CatalignError: No run has results.
    """
    loaded, notes = each(every(compared), _load)
    merged: dict[str, list[Result]] = {}
    for variant in compared:
        read = [loaded[name] for name in variant.named if name in loaded]
        merged[variant.name], failed = _merged(variant, [result for results, _ in read for result in results])
        notes += [*(note for _, unread in read for note in unread), *failed]
    notes += [*_absent(compared, merged), *_apart([result for results in merged.values() for result in results])]
    boards: dict[str, list[Result]] = {}
    for result in (result for results in merged.values() for result in results):
        boards.setdefault(result.protocol["id"], []).append(result)
    colours = {result.row: variant.colour for variant in compared for result in merged[variant.name]}
    ordered = sorted(boards.values(), key=_order)
    shown = [_board(results, colours, len(compared) > 1) for results in ordered]
    leading = {board["benchmark"]: board["protocol"]["name"] for board in reversed(shown)}
    for board in shown:
        board["folded"] = board["protocol"]["name"] != leading[board["benchmark"]]
    return {"boards": shown, "notes": notes}


def _order(results: Sequence[Result]) -> tuple[bool, str, int, int]:
    """Benchmarks by name, held-out losses last; in one benchmark what most rows share first, then the plainest row."""
    first = results[0]
    return first.benchmark == "pretext", first.benchmark, -len(results), len(first.row)


def _load(run: Run) -> tuple[list[Result], list[str]]:
    """A run's results, and sentences on files that cannot be read; they hide no other."""
    results, unread = [], []
    for path in sorted((run.path / "results").rglob("*.json")):
        try:
            results.append(Result.load(path))
        except CatalignError as error:
            unread.append(f"{path} is left out: {error.problem}")
    if not (results or unread):
        commands = [f"catalign bench {name} {run.path}" for name in run.config.evaluation]
        raise CatalignError("nothing has been evaluated in this run", " && ".join(commands) or None)
    return results, unread


def _merged(variant: Variant, results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The results of a variant's seeds, merged and named after it; and sentences on those that cannot be."""
    alike: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        row = variant.name + result.row.removeprefix(variant.first.config.name)
        alike.setdefault((result.protocol["id"], row), []).append(replace(result, row=row))
    merged, notes = [], []
    for some in alike.values():
        try:
            merged.append(merge(some))
        except CatalignError as error:
            notes.append(f"{some[0].benchmark} is left out: {error.problem}")
    return merged, notes


def _absent(compared: Sequence[Variant], merged: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Sentences on variants that lack results of a benchmark that others have."""
    measured = {name: {result.benchmark for result in results} for name, results in merged.items() if results}
    for variant in (variant for variant in compared if variant.name in measured):
        for benchmark in sorted(set().union(*measured.values()) - measured[variant.name]):
            command = f"catalign bench {benchmark} {variant.first.path}"
            yield f"{variant.name} has no results of {benchmark}; make them: {command}"


def _apart(merged: Sequence[Result]) -> Iterator[str]:
    """Sentences on protocols of one name that made other choices."""
    for name in dict.fromkeys(result.protocol["name"] for result in merged):
        some = [result for result in merged if result.protocol["name"] == name]
        rows: dict[str, list[str]] = {}
        for result in some:
            rows.setdefault(result.protocol["id"], []).append(result.row)
        try:
            one_protocol(some)
        except CatalignError as error:
            who = ", ".join(f"{' and '.join(of)} by {identity}" for identity, of in rows.items())
            yield f"{name} was measured in different ways: {who}; {error.remedy}. Each has a table of its own"


def headline(boards: Sequence[Mapping[str, Any]], most: int = 4) -> list[tuple[str, str, str]]:
    """A telling number of each benchmark: value, what it is, and the best trivial baseline beside it."""
    tiles: dict[str, tuple[str, str, str]] = {}
    for board in boards:
        if (found := _telling(board["tables"])) is None or board["benchmark"] in tiles:
            continue
        tiles[board["benchmark"]] = _tile(board, *found)
    return list(tiles.values())[:most]


def _tile(board: Mapping[str, Any], table: Table, column: str) -> tuple[str, str, str]:
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
    whose = [line.name] if board["turned"] else []
    return line.text(chosen), f"{board['benchmark']}: {what}", "; ".join([*whose, note])


def _board(results: Sequence[Result], colours: Mapping[str, str], turned: bool) -> dict[str, Any]:
    first = results[0]
    known = published_rows(first.benchmark, first.protocol["id"])
    tables = tables_of(results, known)
    plain = (int, float, str)
    return {
        "benchmark": first.benchmark,
        "protocol": {key: value for key, value in first.protocol.items() if isinstance(value, plain)},
        "seeds": {result.row: result.seeds for result in results},
        "sources": sorted({"; ".join(filter(None, [row.get("source"), row.get("training")])) for row in known} - {""}),
        "details": {
            key: value
            for key, value in first.details.items()
            if isinstance(value, plain) and all(result.details.get(key) == value for result in results)
        },
        "tables": tables,
        "turned": turned,
        "narrow": all(len(table.columns) < NARROW for table in tables),
        "open": max(1, sum(total <= OPEN for total in accumulate(len(table.lines) for table in tables))),
        "charts": _charts(first.benchmark, tables, colours, turned),
    }


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


def _charts(board: str, tables: list[Table], colours: Mapping[str, str], turned: bool) -> list[dict[str, Any]]:
    """Bars of the most telling metric: of all tasks, or when runs are compared of each."""
    found = [_telling([table]) for table in tables] if turned else [_telling(tables)]
    charts = [_chart(board, *telling, colours) for telling in found if telling]
    return [chart for chart in charts if chart]


def _chart(board: str, table: Table, column: str, colours: Mapping[str, str]) -> dict[str, Any] | None:
    values = {line.name: mean for line in table.lines if (mean := line.mean(column)) is not None}
    ours = {line.name: colours[line.name] for line in table.lines if line.kind == "run"}
    if len(table.groups) > 1 or (len(values) < 3 and len(ours) < 2):
        return None
    spans = {line.name: span for line in table.lines if line.name in ours and (span := line.span(column))}
    title = ", ".join(filter(None, [table.task, column])) + (" (lower is better)" if table.sign(column) < 0 else "")
    order = sorted(values, key=lambda name: -table.sign(column) * values[name])
    svg = plots.bars({name: values[name] for name in order}, ours, label=f"{board}: {title}", spans=spans)
    return {"title": title, "svg": Markup(svg), "spans": bool(spans)}
