"""SimCSE against the paper's definition, and the dropout that it stands on."""

import pytest
import torch

from catalign import registry
from catalign.data.batches import SECOND
from catalign.errors import CatalignError
from catalign.objectives.base import Forward, run_objectives
from catalign.testing import toy_encoders


@pytest.fixture
def encoders():
    return toy_encoders(options={"text": {"dropout": 0.1}})


def simcse(encoders, **options):
    return registry.build("objective", "simcse", encoders, **options)


def paper(first, second, temperature):
    """Equation 4 of the paper: -log exp(sim(h_i, h_i')/t) / sum_j exp(sim(h_i, h_j')/t)."""
    losses = []
    for i in range(len(first)):
        odds = [(torch.cosine_similarity(first[i], other, dim=0) / temperature).exp() for other in second]
        losses.append(-(odds[i] / sum(odds)).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_papers_in_both_directions(encoders, batch, seeded, training):
    objective = simcse(encoders, temperature=0.2).train(training)
    encoders.train(training)
    prepared = objective.prepare(batch, seeded())
    torch.manual_seed(5)
    encode = Forward(encoders, prepared)
    loss = objective(encode, prepared)["loss"]
    first, second = (objective.head(encode("text", prefix).pooled).double() for prefix in ("", SECOND))
    assert not torch.allclose(first, second, atol=1e-3), "dropout tells them apart, in evaluation too"
    assert encoders["text"].training == training
    expected = (paper(first, second, 0.2) + paper(second, first, 0.2)) / 2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_same_product_and_absent_texts_are_no_negatives(encoders, batch, seeded):
    objective = simcse(encoders)
    batch["has_text"] = torch.arange(8) < 6

    def loss(**changes):
        torch.manual_seed(0)
        return run_objectives({"it": objective}, encoders, {**batch, **changes}, seeded())["it"]["loss"]

    other = torch.where(batch["has_text"][:, None], batch["tokens"], batch["tokens"].flip(0))
    torch.testing.assert_close(loss(tokens=other), loss())
    twin = batch["tokens"].clone()
    twin[1] = twin[0]
    mask = batch["token_mask"].clone()
    mask[1] = mask[0]
    same = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7])
    assert loss(tokens=twin, token_mask=mask, group=same) < loss(tokens=twin, token_mask=mask) + 0.3


def test_an_encoder_without_dropout_is_refused():
    with pytest.raises(CatalignError, match=r"encoder\.text\.dropout=0\.1"):
        simcse(toy_encoders())
