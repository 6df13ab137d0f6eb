"""What every figure of the report is: SVG text to place inline in HTML.

Its colours are CSS variables with the light theme's value as fallback, so that the same figure is readable on a light
and on a dark page, and also alone in a file. The palette is Okabe and Ito's (2008), which people with any common colour
blindness tell apart; shapes and dashes repeat what colours say.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1e23", "#5f6670", "#dfe2e6", "#fdfefe"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b6f00", "#7a5aa6")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
OTHER = "#a3a9b1"
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    OTHER: "other",
    **{colour: f"c{number}" for number, colour in enumerate(PALETTE, start=1)},
}
"""Colour of the light theme -> name of the CSS variable that replaces it."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "catalign",
    "text.parse_math": False,
    "font.size": 10.5,
    "font.family": "sans-serif",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
}

CLEANING = (
    (r' id="[A-Za-z0-9.]+_\d+"', ""),  # names of groups repeat within a page; the ids that are used are hashes
    (r"(?<=\.\d\d)\d+", ""),
    (r"font-family: [^;\"]+", "font-family: var(--font, sans-serif)"),
    (r"\n", " "),
)
"""What is changed in the tags of matplotlib's SVG, in order: pattern, replacement."""


def alone(svg: str) -> str:
    """A figure for a file of its own, which no page gives colours: on paper, in the light theme's colours."""
    plain = re.sub(r"var\(--[a-z0-9]+, ([^)]+)\)", r"\1", svg)
    return plain.replace(">", f'><rect width="100%" height="100%" fill="{PAPER}"/>', 1)


def inline(figure: Figure, label: str) -> str:
    """A figure without its prologue, metadata and fixed size; colours and fonts come from the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None
    body = text[text.index("</defs>") + len("</defs>") :]  # the first definitions are only matplotlib's style sheet
    body = re.sub(r"<[^>]*>", lambda tag: _clean(tag[0]), body)  # tags only: the words between them stay as they are
    body = re.sub(r">\s*\n\s*<", ">\n<", body).replace("<g/>\n", "")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    name = escape(label, quote=True)
    return f'<svg {spaces} {view[0]} stroke-linejoin="round" role="img" aria-label="{name}">{body.strip()}'


def _clean(tag: str) -> str:
    for pattern, replacement in CLEANING:
        tag = re.sub(pattern, replacement, tag)
    return re.sub("#[0-9a-f]{6}", lambda match: variable(match[0]), tag)


def variable(colour: str) -> str:
    """A colour of the light theme as the page's variable for it."""
    return f"var(--{VARIABLES[colour]}, {colour})" if colour in VARIABLES else colour
