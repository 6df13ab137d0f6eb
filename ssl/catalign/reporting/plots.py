"""Figures of the report: small functions from numbers to SVG text, and from pixels to data URIs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from catalign.reporting.svg import INK, MARKERS, MUTED, OTHER, PALETTE, PAPER, STYLE, inline

LINES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.9},
    "val": {"marker": "o", "markersize": 5, "linestyle": "--", "zorder": 3},
    "trivial solution": {"linestyle": ":", "linewidth": 1.3, "color": MUTED},
}
"""How curves are drawn: of training, of its few validation passes, of a solution that learned nothing."""

THUMBNAIL = 128
"""Pixels of a picture's longer side at most."""


class Series(NamedTuple):
    """One curve: steps, or times, and values of equal length."""

    steps: Sequence[float]
    values: Sequence[float]


def curves(
    series: Mapping[str, Series],
    *,
    label: str,
    points: Sequence[str] = (),
    reference: float | None = None,
    smooth: bool = False,
) -> str:
    """Curves over optimiser steps.

    Args:
        series: Name -> curve; the names make the legend when there are several.
        label: What the figure shows, for screen readers.
        points: Names drawn as dots joined by a dashed line (validation passes are few).
        reference: A value to mark with a dotted line.
        smooth: Draw the raw curve faintly, and over it its exponential average.

    Returns:
        An SVG fragment.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.3, 2.5)
        for colour, (name, curve) in zip(PALETTE * (1 + len(series) // len(PALETTE)), series.items(), strict=False):
            _curve(axes, curve, "val" if name in points else "train", smooth, color=colour, label=name)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linestyle=":", linewidth=1.3)
        axes.set_xlabel("step")
        axes.margins(x=0.02, y=0.08)
        axes.locator_params(nbins=5)
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, borderpad=0, handlelength=1.6)
        return inline(figure, label)


def timeline(stages: Mapping[str, Mapping[str, Mapping[tuple[str, str], Series]]], *, label: str) -> str:
    """Curves over minutes: a column of panels per stage, about as wide as the stage took.

    Args:
        stages: Stage -> panel's title -> (run, line) -> curve, where a line is one of ``LINES``. A run has the same
            colour everywhere; runs are named in the legend when there are several.
        label: What the figure shows, for screen readers.

    Returns:
        An SVG fragment.
    """
    drawn = [key for panels in stages.values() for curves in panels.values() for key in curves]
    runs, lines = list(dict.fromkeys(run for run, _ in drawn)), {line for _, line in drawn}
    colours = dict(zip(runs, PALETTE * (1 + len(runs) // len(PALETTE)), strict=False))
    spans = [_span([curve for curves in panels.values() for curve in curves.values()]) for panels in stages.values()]
    with matplotlib.rc_context(STYLE):
        height = 0.9 + 1.9 * max(map(len, stages.values()))
        figure = Figure(figsize=(9.4, height), layout="constrained")
        widths = [max(span, sum(spans) / 5, 1e-9) for span in spans]
        columns = figure.add_gridspec(1, len(stages), width_ratios=widths)
        for column, (stage, panels) in enumerate(stages.items()):
            cells = columns[column].subgridspec(len(panels), 1).subplots(sharex=True, squeeze=False)[:, 0]
            for axes, (title, curves) in zip(cells, panels.items(), strict=True):
                axes.set_title(f"{stage}: {title}", loc="left", fontsize=10.5)
                _over_minutes(axes, curves, colours)
            cells[-1].set_xlabel("minutes")
        several = len(runs) > 1
        plain = MUTED if several else PALETTE[0]
        keys = [Line2D([], [], label=line, **{"color": plain, **LINES[line]}) for line in LINES if line in lines]
        keys += [Line2D([], [], color=colours[run], linewidth=4, label=run) for run in runs if several]
        figure.legend(handles=keys, loc="outside upper left", ncols=6, borderpad=0.3, handlelength=2)
        return inline(figure, label)


def panel(curves: Mapping[tuple[str, str], Series], colours: Mapping[str, str], *, label: str) -> str:
    """One panel of a timeline, for a page that has its own legend.

    Args:
        curves: (run, line) -> curve over minutes, where a line is one of ``LINES``.
        colours: Run -> colour.
        label: What the figure shows, for screen readers.

    Returns:
        An SVG fragment.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.3, 2.5)
        _over_minutes(axes, curves, colours)
        axes.set_xlabel("minutes")
        return inline(figure, label)


def embedding_map(points: np.ndarray, labels: Sequence[str], shown: Sequence[str], *, label: str) -> str:
    """A scatter of 2-D points coloured by label, each frequent label written at the centre of its points.

    Args:
        points: (N, 2) coordinates.
        labels: N labels; those not in ``shown`` are grey.
        shown: At most eight labels, in legend order.
        label: What the figure shows, for screen readers.

    Returns:
        An SVG fragment.
    """
    names = np.asarray(labels, dtype=object)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.bottom": False}):
        spread = np.ptp(points, axis=0) + 1e-9
        figure, axes = _figure(5.6, 5.6 * float(np.clip(spread[1] / spread[0], 0.6, 1.1)))
        axes.set(xticks=[], yticks=[], aspect="equal")
        rest = ~np.isin(names, list(shown))
        axes.plot(*points[rest].T, ".", color=OTHER, markersize=3.5, alpha=0.6, markeredgewidth=0)
        for colour, marker, name in zip(PALETTE, MARKERS, shown, strict=False):
            chosen = points[names == name]
            axes.plot(*chosen.T, marker, color=colour, markersize=4.2, alpha=0.75, markeredgewidth=0)
        for colour, name in zip(PALETTE, shown, strict=False):
            if (names == name).mean() > 0.01:
                _name_cloud(axes, points[names == name], name, colour)
        return inline(figure, label)


def bars(
    values: Mapping[str, float],
    colours: Mapping[str, str],
    *,
    label: str,
    spans: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Horizontal bars, first row on top, with our rows in colour and the others in grey.

    Args:
        values: Row -> number, at least one row.
        colours: Our rows -> their colour.
        label: What the figure shows, for screen readers.
        spans: Row -> ends of a whisker, of the rows that have one.

    Returns:
        An SVG fragment.
    """
    order, spans = list(values)[::-1], spans or {}
    ends = [max(values[name], *spans.get(name, (0.0, 0.0))) for name in order]
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.bottom": False}):
        figure, axes = _figure(4.6, 0.4 + 0.27 * len(order))
        axes.barh(order, [values[name] for name in order], color=[colours.get(n, OTHER) for n in order], height=0.66)
        for place, (name, end) in enumerate(zip(order, ends, strict=True)):
            if name in spans:
                axes.plot(spans[name], (place, place), color=INK, linewidth=1.4, marker="|", markersize=6)
            number = decimal(values[name])
            axes.annotate(number, (end, place), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set(xticks=[], xlim=(0, 1.15 * max(*ends, 1e-9)))
        for text in axes.get_yticklabels():
            text.set_color(INK)
        return inline(figure, label)


def decimal(value: float) -> str:
    """A number as tables print it: ``.345`` for a share, else about three digits, thousands with a separator."""
    if isinstance(value, int):
        return f"{value:,}"
    if not np.isfinite(value):
        return "n/a"
    if abs(value) <= 1:
        return f"{value:.3f}".replace("0.", ".", 1)
    return f"{value:,.{max(0, 2 - int(np.log10(abs(value))))}f}"


def smoothed(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """Exponential average over ``share`` of the curve, unbiased at its start (Kingma & Ba 2015); NaN are skipped."""
    decay = 1 - 1 / max(2.0, share * len(values))
    total, weight, result = 0.0, 0.0, np.empty(len(values))
    for place, value in enumerate(values):
        if np.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        result[place] = total / weight if weight else np.nan
    return result


def most_common(labels: Sequence[str], count: int = len(PALETTE)) -> list[str]:
    """The ``count`` most frequent non-empty labels, most frequent first, equal ones in alphabetical order."""
    counts = Counter(label for label in labels if label)
    return sorted(counts, key=lambda name: (-counts[name], name))[:count]


def picture(pixels: np.ndarray, quality: int = 85) -> str:
    """A data URI of an image, made smaller where it is large.

    Args:
        pixels: (H, W, 3); uint8 as they are, floats in 0…1.
        quality: Of the JPEG.
    """
    if pixels.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(pixels), 0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _curve(axes: Axes, curve: Series, line: str, smooth: bool = True, **style: Any) -> None:
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    if line == "train" and len(steps) < 3:
        line = "val"
    if line == "train" and smooth and len(values) > 20:
        axes.plot(steps, values, color=style["color"], alpha=0.25, linewidth=1)
        values = smoothed(values)
    axes.plot(steps, values, **{**style, **LINES[line]})


def _over_minutes(axes: Axes, curves: Mapping[tuple[str, str], Series], colours: Mapping[str, str]) -> None:
    for (run, line), curve in curves.items():
        _curve(axes, curve, line, color=colours[run])
    axes.margins(x=0.03, y=0.08)
    axes.locator_params(nbins=5)


def _span(curves: Sequence[Series]) -> float:
    times = np.concatenate([np.asarray(curve.steps, float) for curve in curves])
    return float(np.ptp(times))


def _name_cloud(axes: Axes, points: np.ndarray, name: str, colour: str) -> None:
    x, y = np.median(points, axis=0)
    box = {"facecolor": PAPER, "edgecolor": colour, "alpha": 0.88, "boxstyle": "round,pad=0.25", "linewidth": 1}
    axes.text(x, y, name, color=INK, fontsize=10, ha="center", va="center", bbox=box, zorder=5)
