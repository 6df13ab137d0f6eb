from __future__ import annotations

import numpy as np
import pytest

from catalign.data.interactions import Cases, Histories
from catalign.errors import CatalignError
from catalign.evaluation.negatives import draw_negatives

USERS, PRODUCTS = 60, 40


@pytest.fixture
def log() -> tuple[Histories, Cases]:
    rng = np.random.default_rng(0)
    histories = Histories.of((str(user), rng.permutation(PRODUCTS)[: rng.integers(3, 9)]) for user in range(USERS))
    return histories, histories.cases("test")


def test_negatives_are_different_products_that_the_user_has_nowhere(log):
    histories, cases = log
    drawn = draw_negatives(histories, cases, np.ones(PRODUCTS), 12)
    assert drawn.shape == (USERS, 12)
    for user, row in zip(cases.users, drawn, strict=True):
        assert len(set(row)) == 12
        assert not set(row) & set(histories.items[user])


def test_a_seed_draws_the_same_again_and_another_seed_others(log):
    drawn = [draw_negatives(*log, np.ones(PRODUCTS), 12, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_all_products_left_can_be_drawn(log):
    histories, cases = log
    fewest = PRODUCTS - histories.items.lengths.max()
    drawn = draw_negatives(histories, cases, np.ones(PRODUCTS), fewest)
    longest = int(np.argmax(histories.items.lengths))
    expected = np.setdiff1d(np.arange(PRODUCTS), histories.items[longest])
    assert list(drawn[list(cases.users).index(longest)]) == list(expected)
    with pytest.raises(CatalignError, match=f"a user has only {fewest} products to draw"):
        draw_negatives(histories, cases, np.ones(PRODUCTS), fewest + 1)


def test_chances_follow_the_weights():
    histories = Histories.of((str(user), [0, 1, 2]) for user in range(6000))
    weights = np.array([5, 5, 5, 3, 2, 1, 0], dtype=float)
    drawn = draw_negatives(histories, histories.cases("test"), weights, 1)
    shares = np.bincount(drawn.ravel(), minlength=7) / len(drawn)
    np.testing.assert_allclose(shares, [0, 0, 0, 3 / 6, 2 / 6, 1 / 6, 0], atol=0.02)
