from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from catalign.data.ragged import Ragged
from catalign.evaluation import click_models
from catalign.evaluation.click_models import Questions, constant, dcn, logistic


@pytest.fixture(autouse=True)
def many_steps(monkeypatch):
    """As many as larger data have."""
    monkeypatch.setattr(click_models, "BATCH", 64)


def drawn(seed, count=4000):
    """Numbers, two categories and histories without any meaning."""
    rng = np.random.default_rng(seed)
    history = Ragged.of(rng.integers(0, 8, (count, 3)))
    return Questions(rng.normal(size=(count, 2)), rng.integers(0, 8, (count, 2)), (9, 8), history)


def answered(rule):
    """Train, val and test questions with the answers of a rule."""
    return [(questions, rule(questions)) for questions in (drawn(seed) for seed in range(3))]


def area(learner, parts):
    train, val, test = parts
    return roc_auc_score(test[1], learner(train, val, 0)(test[0]))


def test_numbers_and_categories_are_learned():
    def rule(questions):
        return questions.numbers[:, 0] + (questions.categories[:, 1] < 4) > 0.5

    parts = answered(rule)
    assert area(logistic, parts) > 0.95
    assert area(dcn, parts) > 0.95
    assert area(constant, parts) == 0.5


@pytest.mark.parametrize(
    "rule",
    [
        lambda q: (q.numbers > 0).sum(1) % 2 == 1,
        lambda q: np.array([(row % 2 == code % 2).mean() > 0.5 for row, code in zip(q.history, q.categories[:, 0])]),
    ],
    ids=["numbers", "history"],
)
def test_only_the_dcn_learns_crosses(rule):
    parts = answered(rule)
    assert area(logistic, parts) < 0.6
    assert area(dcn, parts) > 0.75


def test_the_dcn_depends_on_its_seed_alone(monkeypatch):
    monkeypatch.setattr(click_models, "EPOCHS", 1)
    train, val, test = answered(lambda q: q.numbers[:, 0] > 0)
    state = torch.random.get_rng_state()
    first, again, other = (dcn(train, val, seed)(test[0]) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_val_denies_is_not_kept():
    train, (questions, answers), test = answered(lambda q: q.numbers[:, 0] > 1)
    assert dcn(train, (questions, ~answers), 0)(test[0]) == pytest.approx(train[1].mean())


def test_codes_that_never_trained_say_next_to_nothing():
    train, val, (test, _) = answered(lambda q: q.categories[:, 0] < 4)
    new = replace(test, categories=np.where([True, False], 8, test.categories))
    for learner in (logistic, dcn):
        assert np.ptp(learner(train, val, 0)(test)) > 0.8
        assert np.ptp(learner(train, val, 0)(new)) < 0.4
