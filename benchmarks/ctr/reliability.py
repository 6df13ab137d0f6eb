"""Reliability curves: what was predicted, and what share of it happened.

``python benchmarks/ctr/reliability.py RESULT.json [RESULT.json ...] -o benchmarks/ctr/reliability.svg`` draws a panel
per result, from the curves in its ``details``: ten bins with equally many questions, with Wilson's 95% intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from catalign.artifacts import atomic
from catalign.evaluation.base import Result
from catalign.reporting.svg import MARKERS, MUTED, PALETTE, STYLE, alone, inline

Curve = dict[str, list[float]]
"""``predicted``, ``observed`` and ``count`` of each bin."""


def curves_of(result: Result) -> dict[str, Curve]:
    """A result's curves by name: its own, and of the baselines all but the constant, whose curve is one point."""
    found = dict(result.details["reliability"])
    return {result.row: found.pop("ours"), **{name: curve for name, curve in found.items() if name != "constant"}}


def whiskers(curve: Curve) -> np.ndarray:
    """(2, bins) how far each interval reaches below and above what was observed."""
    reach = []
    for observed, count in zip(curve["observed"], curve["count"], strict=True):
        sure = binomtest(round(observed * count), int(count)).proportion_ci(method="wilson")
        reach.append((max(observed - sure.low, 0), max(sure.high - observed, 0)))
    return np.array(reach).T


def draw(results: Sequence[Result]) -> str:
    """The figure as SVG text: a panel per result, with the diagonal of perfect calibration."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.7 * len(results), 4.4), layout="constrained")
        for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
            curves = curves_of(result)
            end = 1.05 * max(max(curve["predicted"] + curve["observed"]) for curve in curves.values())
            axes.plot([0, end], [0, end], color=MUTED, linestyle=":", linewidth=1.3)
            for (name, curve), colour, marker in zip(curves.items(), PALETTE, MARKERS):
                own = name == result.row
                bars = {"yerr": whiskers(curve), "elinewidth": 0.8} if own else {"alpha": 0.7}
                line = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.9 if own else 1.1}
                axes.errorbar(curve["predicted"], curve["observed"], label=name, **line, **bars)
            axes.set(xlabel="predicted", ylabel="share taken", xlim=(0, end), ylim=(0, end))
            axes.set_title(result.protocol["name"], loc="left", fontsize=10.5)
            axes.legend(loc="upper left")
        return alone(inline(figure, "reliability curves: the share taken over the predicted probability"))


def main() -> None:
    """Read the results, draw the figure, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="result files of the protocol ctr")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the SVG file to write")
    options = parser.parse_args()
    with atomic(options.output) as temporary:
        temporary.write_text(draw([Result.load(path) for path in options.results]) + "\n", encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
