"""Which events of a user's history are held out: the last one, the last by time, or those of some products.

The functions give labels, uint8, in the shape of the histories.
"""

from __future__ import annotations

import numpy as np

from catalign.config import InteractionsConfig
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError

TRAIN, VAL, TEST, LEFT_OUT = range(4)
"""Labels of events. Nobody reads one that is LEFT_OUT, of a cold product before a user's last two events."""


def label(items: Ragged, times: Ragged | None, config: InteractionsConfig) -> Ragged:
    """The labels that a config asks for.

    Args:
        items: Products per user, oldest first.
        times: Seconds in the same shape, where they are known.
        config: ``split`` and its shares.

    Raises:
        CatalignError: A split by global time of a log without times.
    """
    if config.split == "leave_one_out":
        return leave_one_out(items)
    if config.split == "user_time":
        return user_time(items, val=config.val, test=config.test)
    if config.split == "cold_items":
        return cold_items(items, share=config.cold, seed=config.seed)
    if times is None:
        raise CatalignError(
            "data.interactions.split=global_time needs times, and these histories have none",
            "name their column: data.interactions.columns.time=…, or split by user: data.interactions.split=user_time",
        )
    return global_time(times, val=config.val, test=config.test)


def leave_one_out(items: Ragged) -> Ragged:
    """Every user's last event is test, the one before val (Kang & McAuley 2018); a user's first event always trains.

    Args:
        items: Products per user, oldest first.
    """
    one = np.ones(len(items), dtype=np.int64)
    return _last(items, one, one)


def user_time(items: Ragged, *, val: float, test: float) -> Ragged:
    """A share of every user's events, the last ones, is test, and a share before them val.

    Shares are rounded down, but to one event at least while another is left to train on.

    Args:
        items: Products per user, oldest first.
        val: Share of a user's events.
        test: Share of a user's events.
    """

    def count(share: float) -> np.ndarray:
        # .29 * 100 is 28.999999999999996: shares are compared with a little room
        return np.maximum(np.floor(share * items.lengths + 1e-6), share > 0).astype(np.int64)

    return _last(items, count(val), count(test))


def _last(items: Ragged, val: np.ndarray, test: np.ndarray) -> Ragged:
    """Labels by the (U,) numbers of held-out events wanted; where they are too many, val goes first."""
    test = np.minimum(test, np.maximum(items.lengths - 1, 0))
    val = np.minimum(val, np.maximum(items.lengths - 1 - test, 0))
    left = _events_left(items)
    labels = np.full(len(left), TRAIN, dtype=np.uint8)
    labels[left < np.repeat(test + val, items.lengths)] = VAL
    labels[left < np.repeat(test, items.lengths)] = TEST
    return Ragged(labels, items.offsets)


def _events_left(items: Ragged) -> np.ndarray:
    """(events,) how many events of the same user come after each one."""
    return np.repeat(items.offsets[1:], items.lengths) - 1 - np.arange(len(items.values))


def global_time(times: Ragged, *, val: float, test: float) -> Ragged:
    """Everything from one moment on is test, everything from a moment before it val, for all users alike.

    No training event is later than a held-out one, which leave-one-out does not promise (Ji et al. 2023, "A Critical
    Study on Data Leakage in Recommender System Offline Evaluation"). Events of one moment share a label.

    Args:
        times: Seconds per user and event.
        val: Share of all events.
        test: Share of all events.
    """
    labels = np.full(len(times.values), TRAIN, dtype=np.uint8)
    if len(labels):
        start_val, start_test = np.quantile(times.values, [1 - test - val, 1 - test], method="higher")
        if val > 0:
            labels[times.values >= start_val] = VAL
        if test > 0:
            labels[times.values >= start_test] = TEST
    return Ragged(labels, times.offsets)


def cold_items(items: Ragged, *, share: float, seed: int) -> Ragged:
    """Some products are cold: no event of theirs trains, so that a model that knows products by id cannot find them.

    A user's last event is test if its product is cold, the one before it val if its product is. All other events of
    cold products are left out; everything else trains.

    Args:
        items: Products per user, oldest first.
        share: Share of the products with events that is cold.
        seed: Another seed draws other products.
    """
    touched = np.unique(items.values)
    cold = np.random.default_rng(seed).permutation(touched)[: round(share * len(touched))]
    is_cold = np.isin(items.values, cold)
    left = _events_left(items)
    labels = np.where(is_cold, LEFT_OUT, TRAIN).astype(np.uint8)
    labels[is_cold & (left == 0)] = TEST
    labels[is_cold & (left == 1)] = VAL
    return Ragged(labels, items.offsets)
