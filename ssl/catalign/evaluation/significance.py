"""How sure a metric over test cases is, and whether two rows that answered the same cases differ.

A protocol gives one score per case (query, pair, user), metric and row; what comes back is what the ``significance`` of
:class:`catalign.evaluation.base.Result` holds. Cases are drawn again, seeds are not: each seed has intervals
and tests of its own.

References:
    Efron & Tibshirani, An introduction to the bootstrap, 1993 (percentile intervals).
    Smucker, Allan & Carterette, A comparison of statistical significance tests for information retrieval evaluation,
    CIKM 2007 (the paired permutation test).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import bootstrap, permutation_test

LEVEL, DRAWS = 0.95, 9_999
RECORD = f"{LEVEL:.0%} percentile bootstrap over cases; paired permutation test, two-sided; {DRAWS:,} draws"
_ELEMENTS = 2**22  # scores drawn at once

Cases = Mapping[str, np.ndarray]
"""Metric key to (Q,) scores, one per case, in the same order for every row."""

Statistic = Callable[..., np.ndarray]
"""From scores (…, Q) and ``axis`` to the metric (…): their mean, unless a metric is no mean over cases."""


def significance(
    cases: Cases, others: Mapping[str, Cases] | None = None, statistic: Statistic = np.mean
) -> dict[str, float]:
    """Intervals of a row's metrics, and of its differences from other rows.

    Args:
        cases: The row's scores.
        others: Name of another row to its scores of the same cases; a metric that it lacks is left out.
        statistic: What a metric is of its scores.

    Returns:
        For each metric ``<key>/low`` and ``<key>/high``, its 95% bootstrap interval over cases; for each other row
        ``<key>/minus/<name>``, the difference, with ``/low`` and ``/high`` of the paired bootstrap and ``/p`` of the
        paired permutation test, which swaps the two rows' scores within cases at random.
    """
    found: dict[str, float] = {}
    for key, scores in cases.items():
        found[f"{key}/low"], found[f"{key}/high"] = interval(scores, statistic=statistic)
        for name, other in (others or {}).items():
            if key in other:
                tested = compare(scores, other[key], statistic)
                found |= {f"{key}/minus/{name}{part}": number for part, number in tested.items()}
    return found


def compared(ours: Cases, others: Mapping[str, Cases], statistic: Statistic = np.mean) -> dict[str, dict[str, Any]]:
    """A result's ``significance``: of ours, against every other row too, and of each other row alone."""
    alone = {name: significance(cases, statistic=statistic) for name, cases in others.items()}
    return {"ours": significance(ours, others, statistic), **alone}


def compare(first: np.ndarray, second: np.ndarray, statistic: Statistic = np.mean) -> dict[str, float]:
    """How far one row is above another: ``""`` the difference, ``/low`` and ``/high`` its interval, ``/p``."""

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return statistic(a, axis=axis) - statistic(b, axis=axis)

    low, high = interval(first, second, statistic=difference)
    swapped = permutation_test((first, second), difference, permutation_type="samples", **_draws(first))
    return {"": float(difference(first, second, -1)), "/low": low, "/high": high, "/p": float(swapped.pvalue.real)}


def interval(*cases: np.ndarray, statistic: Statistic = np.mean) -> tuple[float, float]:
    """The percentile interval of a statistic of one row's (Q,) scores, or of several rows' for the same cases."""
    drawn = _draws(cases[0])
    found = bootstrap(cases, statistic, paired=True, method="percentile", confidence_level=LEVEL, **drawn)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _draws(cases: np.ndarray) -> dict[str, Any]:
    """Options of scipy's resampling: the same draws at every call, in parts that fit into memory."""
    parts = max(1, _ELEMENTS // len(cases))
    generator = np.random.default_rng(0)
    return {"n_resamples": DRAWS, "batch": parts, "vectorized": True, "axis": -1, "random_state": generator}
