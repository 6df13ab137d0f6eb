"""Histories and the questions asked of a recommender, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalign.config import InteractionsConfig
from catalign.data.interactions import LEFT_OUT, TEST, TRAIN, VAL, Histories
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError

PAIRS = [("ann", [0, 3, 1, 2]), ("bob", [2]), ("cy", [3, 2]), ("dee", [5, 6, 5])]


def lists(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged]


def labelled(events: list[list[tuple[int, int]]]) -> Histories:
    items = Ragged.of([item for item, _ in user] for user in events)
    splits = Ragged.of([[label for _, label in user] for user in events], np.uint8)
    return Histories([str(user) for user in range(len(events))], items, splits)


def test_leave_one_out_is_the_default() -> None:
    histories = Histories.of(PAIRS)
    assert lists(histories.splits) == [[0, 0, 1, 2], [0], [0, 2], [0, 1, 2]]
    assert histories.splits.values.dtype == np.uint8
    assert lists(histories.part(TRAIN)) == [[0, 3], [2], [3], [5]]
    assert lists(histories.part(VAL)) == [[1], [], [], [6]]
    assert lists(histories.part(TRAIN, VAL)) == [[0, 3, 1], [2], [3], [5, 6]]
    val, test = histories.cases("val"), histories.cases("test")
    assert (val.users.tolist(), lists(val.contexts), val.targets.tolist()) == ([0, 3], [[0, 3], [5]], [1, 6])
    assert (test.users.tolist(), test.targets.tolist()) == ([0, 2, 3], [2, 2, 5])
    assert lists(test.contexts) == [[0, 3, 1], [3], [5, 6]]
    assert test.users.dtype == test.targets.dtype == np.int64
    assert len(test) == 3


EVENTS = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=8), max_size=6)


@given(EVENTS, st.sampled_from([("val", VAL), ("test", TEST)]))
def test_cases_are_what_a_loop_finds(events: list[list[tuple[int, int]]], split: tuple[str, int]) -> None:
    expected = []
    for user, history in enumerate(events):
        for place, (item, label) in enumerate(history):
            context = [before for before, other in history[:place] if other != LEFT_OUT]
            if label == split[1] and context:
                expected.append((user, context, item))
    if not expected:
        with pytest.raises(CatalignError, match=f"labelled '{split[0]}'"):
            labelled(events).cases(split[0])
        return
    cases = labelled(events).cases(split[0])
    found = list(zip(cases.users.tolist(), lists(cases.contexts), cases.targets.tolist(), strict=True))
    assert found == expected


@given(EVENTS)
def test_parts_keep_users_and_order(events: list[list[tuple[int, int]]]) -> None:
    parts = lists(labelled(events).part(TRAIN, LEFT_OUT))
    assert parts == [[item for item, label in user if label in (TRAIN, LEFT_OUT)] for user in events]


@given(EVENTS, st.integers(1, 4), st.integers(1, 4))
def test_a_core_is_the_largest_part_that_holds_both(
    events: list[list[tuple[int, int]]], min_user: int, min_item: int
) -> None:
    left = [(user, place, item) for user, history in enumerate(events) for place, (item, _) in enumerate(history)]
    while True:  # one event at a time
        users, items = ([event[key] for event in left] for key in (0, 2))
        bad = [e for e in left if users.count(e[0]) < min_user or items.count(e[2]) < min_item]
        if not bad:
            break
        left.remove(bad[0])
    core = labelled(events).core(min_user, min_item)
    owners = [core.users[user] for user in core.owners]
    assert list(zip(owners, core.items.values.tolist(), strict=True)) == [(str(user), item) for user, _, item in left]


def test_an_unknown_split_of_events() -> None:
    with pytest.raises(CatalignError, match=r"unknown held-out split of events 'tset'\n.*did you mean 'test'"):
        Histories.of(PAIRS).cases("tset")


def test_saved_histories_are_memory_mapped(tmp_path: Path) -> None:
    histories = Histories.of(PAIRS, times=[[1, 2, 2**33, 2**33], [5], [5, 6], [7, 8, 9]])
    histories.save(tmp_path)
    loaded = Histories.load(tmp_path)
    assert loaded.users == histories.users
    for name in ("items", "splits", "times"):
        assert isinstance(getattr(loaded, name).values, np.memmap)
        assert lists(getattr(loaded, name)) == lists(getattr(histories, name))
    assert lists(loaded.cases("test").contexts) == [[0, 3, 1], [3], [5, 6]]
    (tmp_path / "history_splits.values.npy").unlink()
    with pytest.raises(CatalignError, match=r"older version\n.*prepare the catalogue again"):
        Histories.load(tmp_path)


def test_histories_of_no_products_can_be_saved(tmp_path: Path) -> None:
    Histories.of([]).save(tmp_path)
    assert len(Histories.load(tmp_path)) == 0


def test_parts_that_do_not_fit_are_refused() -> None:
    histories = Histories.of(PAIRS)
    with pytest.raises(CatalignError, match="2 users but 4 histories"):
        Histories(["ann", "bob"], histories.items, histories.splits)
    with pytest.raises(CatalignError, match="splits differ in length"):
        Histories(histories.users, histories.items, Ragged.of([[0], [0], [0], [0]]))
    with pytest.raises(CatalignError, match="times differ in length"):
        Histories.of(PAIRS, times=[[1], [2], [3], [4]])


def test_it_describes_itself() -> None:
    histories = Histories.of(PAIRS, times=[[0, 1, 2, 3], [86_400], [5, 6], [7, 8, 864_000]])
    facts = histories.describe()
    assert facts == {
        "users": 4,
        "items": 6,
        "events": 10,
        "repeats": 1,
        "mean_length": 2.5,
        "median_length": 2.5,
        "density": 9 / 24,
        "splits": {"train": 5, "val": 2, "test": 3, "left_out": 0},
        "span": ["1970-01-01", "1970-01-11"],
    }
    assert repr(histories) == (
        "Histories(4 users, 6 items, 10 events (train 5, val 2, test 3), 1970-01-01 to 1970-01-11)"
    )
    assert Histories.of([]).describe()["density"] == 0


def test_a_config_holds_events_out() -> None:
    histories = Histories.of(PAIRS)
    shares = histories.hold_out(InteractionsConfig(split="user_time", val=0.0, test=0.5))
    assert lists(shares.splits) == [[0, 0, 2, 2], [0], [0, 2], [0, 0, 2]]
    with pytest.raises(CatalignError, match=r"global_time needs times.*\n.*columns.time"):
        histories.hold_out(InteractionsConfig(split="global_time"))
