"""NT-Xent against lightly's, and without false negatives against a loop."""

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from catalign import registry
from catalign.objectives.simclr import nt_xent

ALL = torch.ones(12, dtype=torch.bool)


def loop(views, temperature, group, valid):
    views, count = F.normalize(views, dim=1), len(views)
    losses = []
    for i in range(count):
        if not valid[i]:
            continue
        other = (i + count // 2) % count
        kept = [j for j in range(count) if j == other or (j != i and valid[j] and group[j] != group[i])]
        logits = torch.stack([views[i] @ views[j] for j in kept]) / temperature
        losses.append(-F.log_softmax(logits, 0)[kept.index(other)])
    return torch.stack(losses).mean()


def test_equals_lightly_when_groups_differ():
    views = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    group = torch.arange(6).repeat(2)
    loss, _ = nt_xent(views, ALL, 0.3, group)
    expected = NTXentLoss(temperature=0.3)(*views.chunk(2))
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, views, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(nt_xent(views, ALL, 0.3, None)[0], expected)


def test_same_product_is_no_negative():
    views = torch.randn(12, 5, dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 2, 2, 2]).repeat(2)
    loss, _ = nt_xent(views, ALL, 0.3, group)
    torch.testing.assert_close(loss, loop(views, 0.3, group, ALL))
    assert not torch.isclose(loss, nt_xent(views, ALL, 0.3, None)[0])


def test_absent_images_are_neither_anchors_nor_negatives():
    views, group = torch.randn(12, 5, dtype=torch.float64), torch.arange(6).repeat(2)
    valid = torch.tensor([True, True, False, True, False, True]).repeat(2)
    torch.testing.assert_close(nt_xent(views, valid, 0.3, group)[0], loop(views, 0.3, group, valid))


def test_accuracy_counts_nearest_other_views():
    first = torch.eye(6)
    assert nt_xent(torch.cat([first, first]), ALL, 0.1, None)[1] == 1
    assert nt_xent(torch.cat([first, first.roll(1, 0)]), ALL, 0.1, None)[1] == 0


def test_views_come_first_then_second(encoders, batch, seeded):
    objective = registry.build("objective", "simclr", encoders)
    prepared = objective.prepare(batch, seeded())
    assert prepared["image"].shape == (16, 3, 32, 24)
    assert prepared["image"].is_floating_point()
    first, second = prepared["image"].chunk(2)
    assert not torch.equal(first, second)
    assert torch.equal(prepared["group"], batch["group"].repeat(2))
