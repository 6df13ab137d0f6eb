"""Sampled negatives: a few products beside each target, drawn once and for all."""

from __future__ import annotations

import numpy as np

from catalign.data.interactions import Cases, Histories
from catalign.errors import CatalignError


def draw_negatives(
    histories: Histories, cases: Cases, weights: np.ndarray, number: int, *, seed: int = 0
) -> np.ndarray:
    """Different products for every case, none of them in the user's history, now or later.

    One product after another is drawn with a chance proportional to its weight, and drawn again if the case may not
    have it or has it already.

    Args:
        histories: What users did, held-out events too.
        cases: C cases.
        weights: (N,) of the products, 0 for those that are never drawn.
        number: Products per case.
        seed: Another seed draws others.

    Returns:
        (C, number) int64 product rows, ascending in each case.

    Raises:
        CatalignError: A case has fewer products to draw from.
    """
    total, pool = len(weights), np.flatnonzero(weights)
    # A user and a product as one number, sorted, so that membership is a search.
    owned = np.unique(histories.owners * total + histories.items.values)
    in_pool = owned[weights[owned % total] > 0]
    left = len(pool) - np.bincount(in_pool // total, minlength=len(histories))[cases.users]
    if left.min() < number:
        raise CatalignError(
            f"sequential: negatives is {number}, but a user has only {left.min()} products to draw from",
            f"set negatives={left.min()} or less, or negatives=null, which ranks all products",
        )
    generator, limits = np.random.default_rng(seed), np.cumsum(weights[pool] / weights[pool].sum())
    drawn = np.full((len(cases), number), -1, dtype=np.int64)
    places = np.arange(drawn.size)  # of drawn, flat: those that need a product
    while len(places):
        chance = np.searchsorted(limits, generator.random(len(places)) * limits[-1], side="right")
        drawn.flat[places] = pool[chance.clip(max=len(pool) - 1)]
        drawn.sort(axis=1)
        refused = _contains(owned, cases.users[:, None] * total + drawn)
        refused[:, 1:] |= drawn[:, 1:] == drawn[:, :-1]
        places = np.flatnonzero(refused)
    return drawn


def _contains(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.searchsorted(numbers, wanted).clip(max=len(numbers) - 1)
    return np.asarray(numbers[place] == wanted)
