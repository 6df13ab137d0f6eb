"""Image-text matching: which negatives are drawn, and what is scored."""

import pytest
import torch
import torch.nn.functional as F

from catalign import registry
from catalign.objectives.base import Forward, present, run_objectives
from catalign.objectives.image_text_matching import drawn


def matching(encoders, **options):
    return registry.build("objective", "image_text_matching", encoders, width=16, **options)


def test_negatives_are_drawn_by_the_softmax_of_their_scores(encoders, batch_of, seeded):
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(20_000, 1)
    allowed = torch.tensor([True, True, False, True]).expand_as(scores)
    noise = matching(encoders).prepare({"group": torch.zeros(400)}, seeded())["matching_noise"].reshape(-1, 4)[:20_000]
    shares = torch.bincount(drawn(scores, allowed, noise), minlength=4) / 20_000
    expected = torch.tensor([0.0, 1.0, -torch.inf, 3.0]).softmax(0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.015)


def test_the_same_product_is_never_a_negative(encoders, batch, seeded):
    objective = matching(encoders, temperature=1e-6)
    group = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    prepared = objective.prepare({**batch, "group": group}, seeded())
    other = group[:, None] != group
    chosen = drawn(torch.randn(8, 8), other, prepared["matching_noise"][0])
    assert (chosen[:7] == 7).all()
    assert chosen[7] < 7
    one_product = {**batch, "group": torch.zeros(8, dtype=torch.long)}
    outputs = run_objectives({"it": objective}, encoders, one_product, seeded())["it"]
    logits = objective.score(*(objective.embed(m, Forward(encoders, batch)(m).pooled) for m in ("text", "image")))
    torch.testing.assert_close(outputs["loss"], F.softplus(-logits).mean(), msg="only the pairs that match are left")


@pytest.mark.parametrize("hard", [True, False])
def test_loss_is_that_of_a_plain_loop(encoders, batch, seeded, hard):
    objective = matching(encoders, temperature=0.1 if hard else 1e6)
    batch |= {"group": torch.tensor([0, 0, 1, 2, 3, 4, 4, 5]), "has_image": torch.arange(8) != 2}
    prepared = objective.prepare(batch, seeded())
    outputs = objective(Forward(encoders, prepared), prepared)
    text, image = (objective.embed(m, Forward(encoders, batch)(m).pooled) for m in ("text", "image"))
    there = [row for row in range(8) if present(batch, "image")[row]]
    answers = []
    for i in there:
        answers.append((text[i], image[i], 1.0))
        others = [j for j in there if batch["group"][j] != batch["group"][i]]
        text_odds = [text[i] @ image[j] / objective.temperature + prepared["matching_noise"][0, i, j] for j in others]
        image_odds = [image[i] @ text[j] / objective.temperature + prepared["matching_noise"][1, i, j] for j in others]
        answers.append((text[i], image[others[int(torch.stack(text_odds).argmax())]], 0.0))
        answers.append((text[others[int(torch.stack(image_odds).argmax())]], image[i], 0.0))
    logits = torch.stack([objective.score(t[None], v[None])[0] for t, v, _ in answers])
    truth = torch.tensor([matches for _, _, matches in answers])
    torch.testing.assert_close(outputs["loss"], F.binary_cross_entropy_with_logits(logits, truth), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["accuracy"], ((logits > 0) == truth.bool()).float().mean())


def test_low_temperatures_draw_the_nearest_and_high_ones_any(encoders, batch_of, seeded):
    objective = matching(encoders)
    noise = objective.prepare(batch_of(64), seeded())["matching_noise"][0]
    scores, allowed = torch.randn(64, 64, generator=seeded(1)), ~torch.eye(64, dtype=torch.bool)
    nearest = scores.masked_fill(~allowed, -torch.inf).argmax(1)
    assert (drawn(scores / 1e-4, allowed, noise) == nearest).all()
    assert (drawn(scores / 1e4, allowed, noise) == nearest).float().mean() < 0.2
