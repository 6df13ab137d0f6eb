"""Batches of histories are pure functions of (seed, step), and read nothing that is held out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from catalign.data import batches
from catalign.data.history_batches import HistoryLoader, pad_histories
from catalign.data.holdout import VAL
from catalign.data.interactions import Histories
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError

ROWS = [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [8, 9, 10, 0], [1, 3, 5], [2, 4]]
TIMES = [[100 * row + 10 * place for place in range(len(items))] for row, items in enumerate(ROWS)]


@pytest.fixture
def catalogue():
    histories = Histories.of([(f"user{row}", items) for row, items in enumerate(ROWS)], TIMES)
    return SimpleNamespace(name="toy", histories=histories, fields={"title": 1.0})


@pytest.fixture
def gathered(monkeypatch):
    """Content of products, without a catalogue that has any."""

    def gather(catalogue, rows, *_, **__):
        return {"index": torch.from_numpy(np.asarray(rows)), "group": torch.from_numpy(np.asarray(rows) // 2)}

    monkeypatch.setattr(batches, "gather", gather)
    monkeypatch.setattr(HistoryLoader, "_choose_fields", lambda *_: None)


def loader(catalogue, modalities=("behaviour",), rows=range(11), **options):
    options = {"held_out": False, "longest": 50, "batch_size": 2, "steps": 9, "seed": 3, **options}
    return HistoryLoader(catalogue, np.array(list(rows)), modalities, **options)


def histories_of(batch):
    return [row[mask].tolist() for row, mask in zip(batch["history"], batch["history_mask"])]


def test_training_histories_leave_the_last_two_events_out(catalogue):
    seen = {int(u): h for step in range(9) for u, h in _users(loader(catalogue).batch(step))}
    assert seen == {0: [0, 1, 2, 3], 1: [3, 4, 5], 2: [8, 9]}  # users 3 and 4 have one training event or none


def _users(batch):
    return zip(batch["index"], histories_of(batch))


def test_validation_histories_end_with_the_event_labelled_val(catalogue):
    made = loader(catalogue, held_out=True, shuffle=False, batch_size=4).batch(0)
    assert histories_of(made) == [[0, 1, 2, 3, 4], [3, 4, 5, 6], [8, 9, 10], [1, 3]]
    times = [row[mask].tolist() for row, mask in zip(made["history_time"], made["history_mask"])]
    assert times == [[0, 10, 20, 30, 40], [100, 110, 120, 130], [200, 210, 220], [300, 310]]
    assert made["history_time"].dtype == torch.int64


def test_validation_histories_end_there_though_training_events_follow(catalogue):
    """As where products are cold: the event before the last is val, the last trains."""
    splits = Ragged.of([[0, 0, VAL, 0, 0, 0], [0, 0, 0, VAL, 0], [0] * 4, [0] * 3, [0] * 2], np.uint8)
    catalogue.histories = replace(catalogue.histories, splits=splits)
    made = loader(catalogue, held_out=True, shuffle=False).batch(0)
    assert histories_of(made) == [[0, 1, 2], [3, 4, 5, 6]]


def test_histories_are_cut_to_their_latest_and_one_to_predict(catalogue):
    made = loader(catalogue, longest=2, shuffle=False, batch_size=3).batch(0)
    assert histories_of(made) == [[1, 2, 3], [3, 4, 5], [8, 9]]


def test_batches_depend_on_seed_and_step_alone(catalogue):
    first, again = loader(catalogue), loader(catalogue)
    later = again.batch(5)
    for key, value in first.batch(5).items():
        assert torch.equal(value, later[key])
    orders = {tuple(loader(catalogue, seed=seed).batch(0)["index"].tolist()) for seed in range(10)}
    assert len(orders) > 1


@pytest.mark.usefixtures("gathered")
def test_with_content_a_row_is_a_history_and_the_product_that_came_next(catalogue):
    made = loader(catalogue, ("behaviour", "text"), batch_size=3, shuffle=False)
    pairs = {
        (tuple(h), int(i))
        for step in range(9)
        for h, i in zip(histories_of(made.batch(step)), made.batch(step)["index"])
    }
    possible = {
        (tuple(row[:stop]), row[stop]) for row in ([0, 1, 2, 3], [3, 4, 5], [8, 9]) for stop in range(1, len(row))
    }
    assert pairs <= possible
    assert len(pairs) > 3
    assert torch.equal(made.batch(1)["group"], made.batch(1)["index"] // 2)
    assert torch.equal(made.batch(1)["history"], made.batch(1)["history"])


@pytest.mark.usefixtures("gathered")
def test_only_allowed_products_come_next(catalogue):
    made = loader(catalogue, ("behaviour", "text"), rows=[2, 9], batch_size=1)
    assert {int(made.batch(step)["index"][0]) for step in range(9)} == {2, 9}


@pytest.mark.usefixtures("gathered")
@pytest.mark.parametrize("modalities", [("behaviour",), ("behaviour", "text")])
def test_ranks_share_the_global_batch(catalogue, modalities):
    whole = loader(catalogue, modalities, batch_size=2, longest=9)
    ranks = [loader(catalogue, modalities, batch_size=1, rank=rank, world=2, longest=9) for rank in range(2)]
    for step in range(4):
        expected = whole.batch(step)
        assert [h for rank in ranks for h in histories_of(rank.batch(step))] == histories_of(expected)
        assert torch.equal(torch.cat([rank.batch(step)["index"] for rank in ranks]), expected["index"])


def test_nobody_to_learn_from(catalogue):
    catalogue.histories = Histories.of([("ann", [0, 1])])
    with pytest.raises(CatalignError, match="no user of catalogue 'toy' has two events"):
        loader(catalogue)
    with pytest.raises(CatalignError, match="no user of catalogue 'toy' has an event labelled val"):
        loader(catalogue, held_out=True)


def test_queries_are_padded_and_cut():
    made = pad_histories([np.array([1, 2, 3]), np.array([4])], longest=2)
    assert made["history"].tolist() == [[2, 3], [4, 0]]
    assert made["history_mask"].tolist() == [[True, True], [True, False]]
