"""Result tables in Markdown and LaTeX, generated from result files and published numbers, never typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catalign.errors import CatalignError
from catalign.evaluation.base import Metrics, Result, one_protocol

LOWER_IS_BETTER = ("rank", "loss", "perplexity", "error")
ABSENT = "–"
BASELINES = {
    "random": "random (expected)",
    "tfidf": "TF-IDF, word match",
    "bm25": "BM25",
    "untrained": "untrained encoders",
    "pixels": "raw pixels",
    "majority": "majority class",
    "start": "before training",
    "unigram": "unigram model",
    "popularity": "popularity",
    "popularity_leaking": "popularity, as published: it counts the targets",
    "item_knn": "item-kNN",
    "bpr_mf": "BPR-MF",
    "constant": "constant rate",
    "item_rate": "item's rate",
    "logistic": "logistic regression",
    "logistic_tfidf": "logistic regression, TF-IDF",
    "logistic_untrained": "logistic regression, untrained encoders",
    "dcn": "DCN",
    "dcn_tfidf": "DCN, TF-IDF",
    "dcn_untrained": "DCN, untrained encoders",
}
FITTED = {
    "popularity": "train events",
    "popularity_leaking": "all events, test too",
    "item_knn": "train events",
    "bpr_mf": "train events",
    "majority": "train labels",
    "unigram": "train texts",
    "constant": "train labels",
    "item_rate": "train labels",
    **{f"{model}{ending}": "train events" for model in ("logistic", "dcn") for ending in ("", "_tfidf", "_untrained")},
}
"""What baselines are fitted on, of those that are fitted on anything."""


@dataclass
class Row:
    """One line of a table: who, in which role (published, ours, baseline), and its numbers as (mean, std)."""

    label: str
    role: str
    training: str
    parameters: int | None
    metrics: Mapping[str, tuple[float, float]]


@dataclass
class Table:
    """A finished table: text in every cell, and which cells are the best of their column."""

    header: list[str]
    cells: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    rules: set[int] = field(default_factory=set)

    def markdown(self) -> str:
        """The table for a README, notes below."""
        if not self.cells:
            return "No results yet.\n"
        lines = ["| " + " | ".join(self.header) + " |", "|---" + "|---:" * (len(self.header) - 1) + "|"]
        for row, cells in enumerate(self.cells):
            marked = [f"**{cell}**" if (row, column) in self.best else cell for column, cell in enumerate(cells)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in marked) + " |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def latex(self) -> str:
        """A ``tabular`` for a paper (booktabs), notes as comments."""
        lines = [f"% {note}" for note in self.notes]
        lines += [f"\\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}", "\\toprule"]
        lines += [" & ".join(map(_tex, self.header)) + " \\\\", "\\midrule"]
        for row, cells in enumerate(self.cells):
            if row in self.rules:
                lines.append("\\midrule")
            marked = [
                f"\\textbf{{{_tex(c)}}}" if (row, column) in self.best else _tex(c) for column, c in enumerate(cells)
            ]
            lines.append(" & ".join(marked) + " \\\\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    return text.replace("→", r"$\rightarrow$").replace("±", r"$\pm$").replace("–", "--")


def ranking_table(
    results: Sequence[Result], published: Mapping[str, Any] | None, columns: Mapping[str, str], digits: int = 3
) -> Table:
    """Published rows, ours and the trivial ones, one metric per column, the best of each column in bold.

    Args:
        results: Results of one protocol.
        published: What ``published.json`` holds of this protocol, or None.
        columns: Column title to metric key. A row without any of them is left out.
        digits: Decimals of numbers below 10.

    Raises:
        CatalignError: The numbers are of different protocols.
    """
    if results:
        used = one_protocol(results)
        if published is not None and published["protocol"] != used:
            raise CatalignError(
                f"numbers of different protocols cannot stand in one column: published {published['protocol']}, {used}",
                "compare the protocol's choices in the result file with the benchmark's spec.yaml",
            )
    every = [*_published(published), *_ours(results), *_baselines(results, digits)]
    rows = [row for row in every if any(key in row.metrics for key in columns.values())]
    shown = [column for column, key in columns.items() if any(key in row.metrics for row in rows)]
    sizes = any(row.parameters for row in rows)
    header = ["model", "trained on", *(["parameters"] if sizes else []), *shown]
    cells = []
    for row in rows:
        size = [f"{row.parameters / 1e6:.1f} M" if row.parameters else ABSENT] if sizes else []
        numbers = (_number(row.metrics.get(columns[title]), digits) for title in shown)
        cells.append([row.label, row.training, *size, *numbers])
    best: set[tuple[int, int]] = set()
    for column, title in enumerate(shown, len(header) - len(shown)):
        best |= {(row, column) for row in _best([cells[i][column] for i in range(len(rows))], columns[title])}
    rules = {i for i in range(1, len(rows)) if rows[i].role != rows[i - 1].role}
    noted = published if any(row.role == "published" for row in rows) else None
    return Table(header, cells, best, _notes(results, noted), rules)


def comparison_table(results: Sequence[Result], protocols: Mapping[str, str], metrics: Mapping[str, str]) -> Table:
    """One column per result, each under its own protocol, one metric per row.

    Args:
        results: Results of any protocols; the others are left out.
        protocols: Protocol name to column title, in the order of the columns.
        metrics: Row title to metric key.
    """
    chosen = [result for name in protocols for result in results if result.protocol["name"] == name]
    header = ["metric", *(f"{protocols[r.protocol['name']]} ({r.row})" for r in chosen)]
    found = [{key: _entry(values) for key, values in result.metrics.items()} for result in chosen]
    cells = [
        [title, *(_number(entries.get(key)) for entries in found)]
        for title, key in metrics.items()
        if any(key in entries for entries in found)
    ]
    cells += [["protocol", *(f"`{result.protocol['id']}`" for result in chosen)]] if chosen else []
    return Table(header, cells)


def grid_table(results: Sequence[Result], rows: Mapping[str, str], columns: Mapping[str, str]) -> Table:
    """One line per condition and one column per metric, for each result in turn.

    Args:
        results: Results of one protocol.
        rows: Row title to what stands for ``*`` in the columns' keys, such as a share of missing photos.
        columns: Column title to metric key, in which ``*`` stands for the row.

    Raises:
        CatalignError: The numbers are of different protocols.
    """
    if results:
        one_protocol(results)
    cells: list[list[str]] = []
    rules: set[int] = set()
    for result in results:
        rules |= {len(cells)} - {0}
        entries = {key: _entry(values) for key, values in result.metrics.items()}
        for title, row in rows.items():
            numbers = [_number(entries.get(key.replace("*", row))) for key in columns.values()]
            cells.append([title if len(results) == 1 else f"{result.row}, {title}", *numbers])
    return Table(["", *columns], cells, notes=_notes(results, None), rules=rules)


def ablation_table(results: Sequence[Result], labels: Mapping[str, str], columns: Mapping[str, Sequence[str]]) -> Table:
    """One line per row of results, in the order of ``labels``, with metrics of several protocols and the time it took.

    Args:
        results: Results of any protocols.
        labels: Row name to what the line says. A row without results is left out.
        columns: Column title to (protocol name, metric key).

    Raises:
        CatalignError: The numbers of a column are of different protocols.
    """
    found = {(result.protocol["name"], result.row): result for result in results if result.row in labels}
    for name in {name for name, _ in found}:
        one_protocol(result for (protocol, _), result in found.items() if protocol == name)
    cells: list[list[str]] = []
    for row, label in labels.items():
        own = [found[name, row] for name, _ in columns.values() if (name, row) in found]
        if not own:
            continue
        entries = [
            _entry(found[name, row].metrics[key]) if (name, row) in found else None for name, key in columns.values()
        ]
        minutes = own[0].wall_clock_s / 60 / len(own[0].seeds)
        cells.append([label, *map(_number, entries), str(len(own[0].seeds)), f"{minutes:.0f}"])
    header = ["", *columns, "seeds", "minutes"]
    metrics = [key for _, key in columns.values()]
    best = {(row, place) for place, key in enumerate(metrics, 1) for row in _best([c[place] for c in cells], key)}
    return Table(header, cells, best=best)


def _entry(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(set(values)) > 1 else 0.0


def _number(entry: tuple[float, float] | None, digits: int = 3) -> str:
    if entry is None:
        return ABSENT
    mean, std = entry
    digits = digits if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std > 0 else "")


def _best(column: Sequence[str], key: str) -> set[int]:
    values = {row: float(cell.split(" ")[0]) for row, cell in enumerate(column) if cell != ABSENT}
    if len(values) < 2 or key.endswith("/p"):  # a small p is no merit: the row may be significantly worse
        return set()
    target = min(values.values()) if lower_is_better(key) else max(values.values())
    return {row for row, value in values.items() if value == target}


def lower_is_better(key: str) -> bool:
    """Whether a metric, by its key or its column's title, is the better the lower it is."""
    return any(word in key for word in LOWER_IS_BETTER)


def _published(published: Mapping[str, Any] | None) -> list[Row]:
    if published is None:
        return []
    return [
        Row(
            f"{row['row']} (published)",
            "published",
            row.get("training") or ABSENT,
            row.get("parameters"),
            {key: (value, 0.0) for key, value in row["metrics"].items()},
        )
        for row in published["rows"]
    ]


def _ours(results: Sequence[Result]) -> list[Row]:
    return [
        Row(
            result.row,
            "ours",
            result.details.get("training", ABSENT),
            result.details.get("parameters"),
            _entries(result.metrics, result, "ours"),
        )
        for result in results
    ]


def _entries(metrics: Metrics, result: Result, row: str) -> dict[str, tuple[float, float]]:
    """A row's metrics, and its intervals and tests where it has some."""
    return {key: _entry(values) for key, values in {**metrics, **result.significance.get(row, {})}.items()}


def _baselines(results: Sequence[Result], digits: int) -> list[Row]:
    """Each baseline once if all results agree on it, else once per result."""
    rows = []
    for name in dict.fromkeys(name for result in results for name in result.baselines):
        found = {
            result.row: _entries(result.baselines[name], result, name) for result in results if name in result.baselines
        }
        label, fitted = BASELINES.get(name, name), FITTED.get(name, "nothing")
        rounded = [{key: f"{mean:.{digits}f}" for key, (mean, _) in metrics.items()} for metrics in found.values()]
        if all(numbers == rounded[0] for numbers in rounded):
            rows.append(Row(label, "baseline", fitted, None, next(iter(found.values()))))
        else:
            rows += [Row(f"{label} of {row}", "baseline", fitted, None, metrics) for row, metrics in found.items()]
    return rows


def _notes(results: Sequence[Result], published: Mapping[str, Any] | None) -> list[str]:
    notes = []
    identity = results[0].protocol["id"] if results else published["protocol"] if published else None
    if identity:
        notes.append(f"Protocol `{identity}`.")
    if published is not None:
        notes[-1] += f" Published rows: {published['source']}."
    for result in results:
        seeds, machine = len(result.seeds), result.hardware
        where = f"{machine.get('gpu') or machine.get('cpu', 'unknown machine')}, {machine.get('cores', '?')} cores"
        minutes = result.wall_clock_s / 60 / seeds
        notes.append(f"{result.row}: {seeds} seed{'s' * (seeds > 1)}, {minutes:.0f} min each on {where}.")
    return notes
