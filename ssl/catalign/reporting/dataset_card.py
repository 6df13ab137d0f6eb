"""The dataset card: what a catalogue holds, what it lacks, and which rows were left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from catalign.data import interactions, logs, splits
from catalign.data.catalogue import Catalogue
from catalign.reporting import panels, plots
from catalign.reporting.comparison import Variant, each, firsts

SAMPLES, REASONS = 16, 12
"""Products shown, and rows listed that were left out."""


def cards(compared: Sequence[Variant]) -> dict[str, Any]:
    """One card per catalogue that the variants were made with.

    Returns:
        ``cards``, each with the names of its variants, and ``notes`` on catalogues that cannot be opened.

    Raises:
        CatalignError: None can be opened.
    """
    found, notes = each(firsts(compared), lambda run: run.catalogue())
    used: dict[str, list[str]] = {}
    for name, catalogue in found.items():
        used.setdefault(catalogue.fingerprint, []).append(name)
    return {"cards": [{"runs": names, **card(found[names[0]])} for names in used.values()], "notes": notes}


def card(catalogue: Catalogue) -> dict[str, Any]:
    """Counts, splits, groups, gaps, faults and some products of a catalogue."""
    facts = catalogue.describe()
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
        "largest": int(np.bincount(catalogue.groups).max(initial=0)),
        "splits": [_split(catalogue, name) for name in splits.SPLITS],
        "texts": [_text(catalogue, field) for field in catalogue.fields],
        "gaps": [(name, n, n / max(len(catalogue), 1)) for name, n in facts["missing"].items() if n],
        "attributes": attributes,
        "behaviour": facts["behaviour"] and interactions.in_words(facts["behaviour"]),
        "log": facts["log"] and logs.in_words(facts["log"]),
        "bad_rows": bad.pop("rows"),
        "bad_kinds": bad,
        "reasons": catalogue.quarantine[:REASONS],
        "samples": [panels.card(catalogue, row) for row in rows],
    }


def _split(catalogue: Catalogue, name: str) -> dict[str, Any]:
    rows = np.flatnonzero(catalogue.splits == name)
    return {
        "name": name,
        "products": len(rows),
        "groups": len(np.unique(catalogue.groups[rows])),
        "photos": int(catalogue.has_image[rows].sum()),
        "texts": int(catalogue.has_text[rows].sum()),
    }


def _text(catalogue: Catalogue, field: str) -> tuple[str, int, int]:
    """A text column's name, and the median and 95th percentile of its texts' tokens."""
    lengths = catalogue.tokens[field].lengths
    middle, high = np.percentile(lengths[lengths > 0], [50, 95]) if lengths.any() else (0, 0)
    return field, int(middle), int(high)
