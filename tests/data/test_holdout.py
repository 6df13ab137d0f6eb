"""What each split of events promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalign.config import InteractionsConfig
from catalign.data import holdout
from catalign.data.holdout import LEFT_OUT, TEST, TRAIN, VAL
from catalign.data.ragged import Ragged

HISTORIES = st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12).map(Ragged.of)


def lists(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged]


@given(HISTORIES)
def test_leave_one_out(items: Ragged) -> None:
    for labels in lists(holdout.leave_one_out(items)):
        count = len(labels)
        assert labels == ([TRAIN] * (count - 2) + [VAL, TEST] if count > 2 else [TRAIN, TEST][:count])


@pytest.mark.parametrize(
    ("length", "val", "test", "expected"),
    [
        (10, 0.1, 0.2, [0] * 7 + [1] + [2] * 2),
        (10, 0.29, 0.0, [0] * 8 + [1] * 2),
        (100, 0.29, 0.3, [0] * 41 + [1] * 29 + [2] * 30),
        (4, 0.1, 0.1, [0, 0, 1, 2]),
        (2, 0.1, 0.1, [0, 2]),
        (1, 0.1, 0.1, [0]),
        (3, 0.0, 0.9, [0, 2, 2]),
    ],
)
def test_user_time(length: int, val: float, test: float, expected: list[int]) -> None:
    labels = holdout.user_time(Ragged.of([[7] * length, []]), val=val, test=test)
    assert lists(labels) == [expected, []]
    assert labels.values.dtype == np.uint8


TIMES = st.lists(st.lists(st.integers(0, 50), max_size=9).map(sorted), max_size=9)


@given(TIMES, st.floats(0, 0.45), st.floats(0, 0.45))
def test_global_time_trains_on_nothing_later(times: list[list[int]], val: float, test: float) -> None:
    ragged = Ragged.of(times, np.int64)
    labels = holdout.global_time(ragged, val=val, test=test).values
    by_label = [ragged.values[labels == label] for label in (TRAIN, VAL, TEST)]
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if len(by_label[earlier]) and len(by_label[later]):
            assert by_label[earlier].max() < by_label[later].min()
    assert val or not len(by_label[VAL])
    assert test or not len(by_label[TEST])


def test_global_time_takes_its_shares() -> None:
    times = Ragged.of([range(0, 100, 2), range(1, 100, 2)], np.int64)
    labels = holdout.global_time(times, val=0.1, test=0.2)
    assert np.bincount(labels.values).tolist() == [70, 10, 20]


@given(HISTORIES, st.floats(0.05, 0.9), st.integers(0, 5))
def test_cold_items_never_train(items: Ragged, share: float, seed: int) -> None:
    labels = holdout.cold_items(items, share=share, seed=seed)
    assert lists(labels) == lists(holdout.cold_items(items, share=share, seed=seed))
    touched = set(items.values.tolist())
    cold = set(items.values[labels.values != TRAIN].tolist())
    assert len(cold) == round(share * len(touched))
    assert not cold & set(items.values[labels.values == TRAIN].tolist())
    for row, marks in zip(lists(items), lists(labels), strict=True):
        for left, (item, mark) in enumerate(zip(reversed(row), reversed(marks), strict=True)):
            assert mark == ([TEST, VAL, LEFT_OUT][min(left, 2)] if item in cold else TRAIN)


def test_another_seed_draws_other_items() -> None:
    items = Ragged.of([range(100)])
    drawn = {tuple(holdout.cold_items(items, share=0.3, seed=seed).values.tolist()) for seed in range(5)}
    assert len(drawn) == 5


def test_every_split_of_the_config_is_the_one_it_names() -> None:
    items = Ragged.of([range(10), range(3, 8), range(7)])
    times = Ragged.of([range(0, 100, 10), range(60, 110, 10), range(30, 100, 10)], np.int64)

    def labels(split: str) -> list[list[int]]:
        config = InteractionsConfig(split=split, val=0.1, test=0.4, cold=0.4, seed=3)
        return lists(holdout.label(items, times, config))

    expected = {
        "leave_one_out": holdout.leave_one_out(items),
        "user_time": holdout.user_time(items, val=0.1, test=0.4),
        "global_time": holdout.global_time(times, val=0.1, test=0.4),
        "cold_items": holdout.cold_items(items, share=0.4, seed=3),
    }
    assert {split: labels(split) for split in expected} == {split: lists(found) for split, found in expected.items()}
    assert len({str(lists(found)) for found in expected.values()}) == 4
    with pytest.raises(ValueError, match="val \\+ test must leave"):
        InteractionsConfig(val=0.5, test=0.5)
