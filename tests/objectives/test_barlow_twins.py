"""Barlow Twins against the paper's definition."""

import torch
from torch import nn

from catalign import registry
from catalign.encoders.base import Encoded
from catalign.objectives.base import run_objectives


def barlow_twins(encoders, **options):
    return registry.build("objective", "barlow_twins", encoders, width=6, **options)


def paper(first, second, redundancy):
    """Equations 1 and 2 of the paper, an entry at a time, with the correlation of standardised columns."""
    total = 0.0
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
            correlation = (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())
            total = total + ((1 - correlation) ** 2 if i == j else redundancy * correlation**2)
    return total / first.shape[1]


def test_loss_is_the_papers_over_the_images_that_are_there(encoders, seeded):
    objective = barlow_twins(encoders, redundancy=0.02)
    objective.head = nn.Identity()
    features, there = torch.randn(16, 6, generator=seeded()), torch.arange(8) != 3
    loss = objective(lambda modality: Encoded(features, features), {"has_image": there.repeat(2)})["loss"]
    first, second = features.double().chunk(2)
    torch.testing.assert_close(loss.double(), paper(first[there], second[there], 0.02), rtol=1e-3, atol=1e-4)


def test_unrelated_views_and_collapsed_features_score_about_one(encoders, seeded):
    objective = barlow_twins(encoders)
    unrelated = torch.randn(2, 500, 6, generator=seeded())
    torch.testing.assert_close(objective.score(*unrelated) / 6, torch.tensor(1.0), rtol=0, atol=0.1)
    constant = torch.ones(500, 6)
    torch.testing.assert_close(objective.score(constant, constant) / 6, torch.tensor(1.0))
    assert objective.score(unrelated[0], unrelated[0]) / 6 < 0.01


def test_views_differ_and_a_batch_of_one_image_has_no_loss(encoders, batch, seeded):
    objective = barlow_twins(encoders)
    first, second = objective.prepare(batch, seeded())["image"].chunk(2)
    assert first.shape == (8, 3, 32, 24)
    assert not torch.equal(first, second)
    batch["has_image"] = torch.arange(8) == 3
    loss = run_objectives({"it": objective}, encoders, batch, seeded())["it"]["loss"]
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in objective.parameters())
