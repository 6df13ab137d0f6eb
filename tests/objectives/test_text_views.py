"""Views of texts: what is hidden, what is compared."""

import torch

from catalign import registry
from catalign.objectives.base import run_objectives
from catalign.objectives.text_views import drop_tokens


def text_views(encoders, **options):
    return registry.build("objective", "text_views", encoders, **options)


def test_hidden_tokens_are_ordinary_and_never_all(seeded):
    tokens = torch.tensor([[2, 10, 11, 12, 3, 0], [2, 20, 3, 0, 0, 0]]).repeat(500, 1)
    mask = tokens != 0
    kept = drop_tokens(tokens, mask, [0, 1, 2, 3], 0.5, seeded())
    assert (kept[:, 0] & kept.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)).all()
    assert not kept[~mask].any()
    assert kept[1::2, 1].all(), "the only word stays"
    assert 0.4 < kept[::2, 1:4].float().mean() < 0.65
    assert kept[::2, 1:4].any(1).all()


def test_views_differ_and_the_second_text_is_one_of_them(encoders, batch, seeded):
    objective = text_views(encoders, drop_tokens=0.5)
    views = objective.prepare(batch, seeded())
    assert torch.equal(views["second_tokens"], batch["tokens"])
    assert not torch.equal(views["second_token_mask"], views["token_mask"])
    other = {"second_tokens": batch["tokens"].flip(0), "second_token_mask": batch["token_mask"].flip(0)}
    other["has_second"] = torch.arange(8) < 4
    views = objective.prepare({**batch, **other}, seeded())
    assert torch.equal(views["second_tokens"], batch["tokens"].flip(0))
    assert torch.equal(views["has_second"], other["has_second"])


def test_rows_of_one_group_and_rows_without_a_second_text(encoders, batch, seeded):
    objective = text_views(encoders, drop_tokens=0.0).eval()
    encoders.eval()

    def outputs(**changes):
        return run_objectives({"it": objective}, encoders, {**batch, **changes}, seeded())["it"]

    assert outputs()["accuracy"] == 1, "equal views find each other"
    one_group = outputs(group=torch.zeros(8, dtype=torch.long))
    assert one_group["loss"] > outputs()["loss"], "the target is spread over all rows"
    absent = {"second_tokens": batch["tokens"], "second_token_mask": batch["token_mask"]}
    none = outputs(**absent, has_second=torch.zeros(8, dtype=torch.bool))
    assert none["loss"] == 0
