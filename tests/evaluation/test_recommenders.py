from __future__ import annotations

import numpy as np
import pytest

from catalign.data.interactions import TRAIN, Histories
from catalign.data.ragged import Ragged
from catalign.evaluation import recommenders
from catalign.evaluation.recommenders import bpr_mf, counts, item_knn, matrix, popularity, word_match
from catalign.retrieval.targets import target_ranks

PRODUCTS = 30


@pytest.fixture
def histories() -> Histories:
    rng = np.random.default_rng(0)
    chances = np.arange(1, PRODUCTS) / np.arange(1, PRODUCTS).sum()  # product 29 is bought by nobody
    return Histories.of(
        (str(user), rng.choice(PRODUCTS - 1, rng.integers(3, 12), replace=False, p=chances)) for user in range(50)
    )


def every(scorer, questions):
    return scorer.block(np.arange(questions))


def slow_item_knn(histories, contexts, neighbours):
    """Users x products in full; similarities, neighbours and votes one by one."""
    bought = np.zeros((len(histories), PRODUCTS))
    for user in range(len(histories)):
        bought[user, histories.part(TRAIN)[user]] = 1
    scores = np.zeros((len(contexts), PRODUCTS))
    for question in range(len(contexts)):
        for product in set(contexts[question]):
            both = bought[:, product] @ bought
            similar = both / np.sqrt(np.maximum(bought.sum(0) * bought[:, product].sum(), 1))
            similar[product] = 0
            similar = np.rint(similar * 2**30) / 2**30
            for other in np.argsort(-similar, kind="stable")[:neighbours]:
                scores[question, other] += similar[other]
    scores[:, bought.sum(0) == 0] = -np.inf
    return scores


@pytest.mark.parametrize("neighbours", [2, 5, 100])
def test_item_knn_sums_the_cosines_of_the_nearest(histories, neighbours):
    contexts = histories.cases("test").contexts
    scores = every(item_knn(histories, PRODUCTS, contexts, neighbours), len(contexts))
    np.testing.assert_array_equal(scores, slow_item_knn(histories, contexts, neighbours))


def test_item_knn_reads_train_events_only(histories):
    cases = histories.cases("test")
    items = histories.items.values.copy()
    items[histories.splits.values != TRAIN] = 0
    other = Histories(histories.users, Ragged(items, histories.items.offsets), histories.splits)
    first, second = (every(item_knn(h, PRODUCTS, cases.contexts), len(cases)) for h in (histories, other))
    np.testing.assert_array_equal(first, second)


def test_popularity_counts_the_events_asked_for(histories):
    train = np.bincount(histories.part(TRAIN).values, minlength=PRODUCTS)
    assert np.array_equal(counts(histories, PRODUCTS, TRAIN), train)
    assert counts(histories, PRODUCTS).sum() == len(histories.items.values)
    scores = every(popularity(histories, PRODUCTS, TRAIN), 2)
    np.testing.assert_array_equal(scores, np.tile(np.where(train > 0, train, -np.inf), (2, 1)))


def test_a_matrix_holds_ones():
    made = matrix(Ragged.of([[2, 0, 2], [], [1]]), 4).toarray()
    np.testing.assert_array_equal(made, [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])


def test_word_match_goes_by_shared_words():
    contexts = Ragged.of([[0], [0, 2]])
    scores = every(word_match(["red shoes", "red hat", "blue hat", ""], contexts), 2)
    assert scores[0, 0] > scores[0, 1] > scores[0, 2] == 0
    assert scores[1, 2] > scores[1, 1] > 0
    assert np.isneginf(scores[:, 3]).all()
    assert word_match(["", ""], contexts) is None


def test_bpr_finds_what_similar_users_bought(monkeypatch):
    pytest.importorskip("implicit")
    monkeypatch.setitem(recommenders.BPR, "iterations", 200)
    rng = np.random.default_rng(0)
    # Users of two tastes: products 0 to 9 or 10 to 19; product 20 has no event.
    halves = [10 * (user % 2) + rng.permutation(10)[:6] for user in range(80)]
    histories = Histories.of((str(user), row) for user, row in enumerate(halves))
    cases = histories.cases("test")
    scorer = bpr_mf(histories, 21, cases.users)
    ranks = target_ranks(scorer, cases.targets, hidden=cases.contexts)
    assert (ranks <= 5).mean() > 0.9
    assert np.isneginf(every(scorer, 3)[:, 20]).all()
    recommenders._factors.cache_clear()
    again = bpr_mf(histories, 21, cases.users)
    np.testing.assert_array_equal(every(again, 80), every(scorer, 80))


def test_bpr_is_left_out_without_its_library(histories, monkeypatch):
    monkeypatch.setattr(recommenders, "find_spec", lambda name: None)
    assert bpr_mf(histories, PRODUCTS, np.arange(3)) is None
