"""Predicted probabilities beside what happened: order (AUC), surprise (log-loss) and calibration, with intervals.

Questions come in cases, (Q, C): the C candidates of a user, or one impression (C = 1). Intervals and tests draw whole
cases, because a user's candidates are not independent.

References:
    DeLong, DeLong & Clarke-Pearson, Comparing the areas under two or more correlated ROC curves, Biometrics 1988;
    Obuchowski, Nonparametric analysis of clustered ROC curve data, Biometrics 1997.
    Naeini, Cooper & Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import log_loss, roc_auc_score

from catalign.evaluation.significance import interval, significance

BINS = 10
"""Of a reliability curve, with equally many questions in each: clicks are rare, and bins of equal width stay empty."""
LEAST = 1e-7
"""Probabilities are kept so far from 0 and 1 in the log-loss."""


def measured(taken: np.ndarray, chance: np.ndarray) -> dict[str, float]:
    """``auc``, ``log_loss`` and ``calibration_error`` (expected calibration error) of probabilities.

    Args:
        taken: (Q, C) bool, what happened; both answers occur.
        chance: (Q, C) predicted probabilities of it.
    """
    truth, guess = taken.ravel(), chance.ravel()
    return {
        "auc": float(roc_auc_score(truth, guess)),
        "log_loss": float(log_loss(truth, guess.clip(LEAST, 1 - LEAST))),
        "calibration_error": float(np.abs(bin_gaps(taken, chance).mean(axis=0)).sum()),
    }


def surety(taken: np.ndarray, chance: np.ndarray, others: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
    """Intervals of :func:`measured`, and paired tests of AUC and log-loss against other rows' probabilities.

    The calibration error is no mean over cases: it has an interval, of the same bins in every draw, and no test.
    """
    found = significance(_cases(taken, chance), {name: _cases(taken, other) for name, other in (others or {}).items()})
    gaps = bin_gaps(taken, chance)

    def error(rows: np.ndarray, axis: int) -> np.ndarray:
        """From the numbers of drawn cases (…, Q)."""
        times = np.apply_along_axis(np.bincount, axis, rows, minlength=len(gaps))
        return np.abs(times @ gaps / len(gaps)).sum(axis=-1)

    low, high = interval(np.arange(len(gaps)), statistic=error)
    return {**found, "calibration_error/low": low, "calibration_error/high": high}


def reliability(taken: np.ndarray, chance: np.ndarray) -> dict[str, list[float]]:
    """Of each bin, from low to high: the mean prediction, the share that happened, and the number of questions."""
    truth, guess, place = taken.ravel(), chance.ravel(), _bins(chance).ravel()
    count = np.bincount(place, minlength=BINS)
    used = count > 0
    sums = {"predicted": np.bincount(place, guess, BINS), "observed": np.bincount(place, truth, BINS)}
    curve = {key: np.round(total[used] / count[used], 6).tolist() for key, total in sums.items()}
    return {**curve, "count": count[used].tolist()}


def _cases(taken: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    return {"auc": auc_cases(taken, chance), "log_loss": loss_cases(taken, chance)}


def auc_cases(taken: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(Q,) numbers whose mean is the AUC, and whose spread is that of the AUC when cases are drawn again.

    They sum what DeLong's components say: of a taken question, the share of the others that it is placed above; of
    another, the share of the taken ones that are placed above it.
    """
    placed = np.empty(taken.shape)
    ranks = rankdata(chance).reshape(taken.shape)
    above = (ranks[taken] - rankdata(chance[taken])) / (~taken).sum()
    below = 1 - (ranks[~taken] - rankdata(chance[~taken])) / taken.sum()
    area = above.mean()
    placed[taken] = (above - area) / taken.sum()
    placed[~taken] = (below - area) / (~taken).sum()
    return np.asarray(area + len(taken) * placed.sum(axis=1))


def loss_cases(taken: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(Q,) mean negative log-probability of what happened."""
    return np.asarray(-np.log(np.where(taken, chance, 1 - chance).clip(LEAST)).mean(axis=1))


def bin_gaps(taken: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(Q, bins) what happened less what was predicted, of a case's questions in each bin, as a share of all of them.

    The absolute column means add up to the expected calibration error: |mean prediction - share that happened| of
    each bin, weighted by its size.
    """
    place, gap = _bins(chance), (taken - chance) / taken.shape[1]
    return np.stack([np.where(place == number, gap, 0).sum(axis=1) for number in range(BINS)], axis=1)


def _bins(chance: np.ndarray) -> np.ndarray:
    """The number of each question's bin, as in scikit-learn's ``calibration_curve`` with ``strategy="quantile"``."""
    edges = np.quantile(chance, np.linspace(0, 1, BINS + 1))
    return np.searchsorted(edges[1:-1], chance)
