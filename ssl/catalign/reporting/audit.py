"""Suspicious listings as a table in the terminal, as CSV, and as one HTML page with their photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from catalign.artifacts import atomic
from catalign.data.catalogue import Catalogue
from catalign.reporting import panels
from catalign.reporting.report import environment
from catalign.retrieval.audit import Suspect


def terminal(suspects: Sequence[Suspect]) -> Table:
    """A table for the terminal, worst first."""
    table = Table()
    table.add_column("#", justify="right")
    for heading in ("id", "title", "reasons"):
        table.add_column(heading, overflow="fold")
    for place, suspect in enumerate(suspects, 1):
        table.add_row(str(place), *map(escape, (suspect.id, suspect.title, "\n".join(suspect.reasons))))
    return table


def write_audit(catalogue: Catalogue, suspects: Sequence[Suspect], folder: Path) -> list[Path]:
    """Write ``audit.html`` and ``audit.csv``; the CSV holds every signal's score too."""
    page, table = folder / "audit.html", folder / "audit.csv"
    cards = [(panels.card(catalogue, suspect.row), suspect) for suspect in suspects]
    html = environment().get_template("audit.html.j2").render(catalogue=catalogue, cards=cards)
    with atomic(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    lines = [
        {"id": s.id, "title": s.title, "suspicion": s.suspicion, "reasons": "; ".join(s.reasons), **s.signals}
        for s in suspects
    ]
    with atomic(table) as temporary:
        pd.DataFrame(lines).round(4).to_csv(temporary, index=False)
    return [page, table]
