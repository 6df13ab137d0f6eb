"""Rows that cannot be used: counted, listed with their reason, never silently dropped."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from catalign.artifacts import atomic
from catalign.errors import CatalignError

REPORT = "quarantine.csv"
MALFORMED = "__malformed__"
"""A chunk's extra column: why a line of the source is no row at all, or None where it is one."""


@dataclass(frozen=True)
class BadRow:
    """A row left out.

    Attributes:
        row: Its number in the source, counted from 0 (a header is not counted).
        id: Its product id, "" where it has none.
        column: The column at fault.
        reason: What is wrong, in words.
    """

    row: int
    id: str
    column: str
    reason: str


def write(path: Path, bad: Iterable[BadRow]) -> None:
    """Write the report, a CSV with one line per bad row in source order."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(BadRow)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(bad, key=lambda row: row.row))


def read(path: Path) -> list[BadRow]:
    """Read what :func:`write` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [BadRow(int(line["row"]), line["id"], line["column"], line["reason"]) for line in csv.DictReader(file)]


def counts(bad: Iterable[BadRow]) -> dict[str, int]:
    """Rows per kind of fault (the reason up to its colon), most frequent first."""
    return dict(Counter(f"{row.column}: {row.reason.split(':')[0]}" for row in bad).most_common())


def check_share(name: str, bad: list[BadRow], total: int, limit: float, report: Path) -> None:
    """Stop when too many rows are bad.

    Raises:
        CatalignError: More than ``limit`` of ``total`` rows are bad; names the first reasons and the report.
    """
    if len(bad) <= limit * total:
        return
    first = "; ".join(f"row {row.row} ({row.column}): {row.reason}" for row in sorted(bad, key=lambda row: row.row)[:3])
    share = len(bad) / total
    raise CatalignError(
        f"{len(bad)} of {total} rows of {name!r} are bad ({share:.1%}, the limit is {limit:.1%}): {first}",
        f"every bad row is listed in {report}; repair them, or allow more: data.max_bad_share={_round_up(share)}",
    )


def _round_up(share: float) -> float:
    return min(1.0, int(share * 100 + 1) / 100)
