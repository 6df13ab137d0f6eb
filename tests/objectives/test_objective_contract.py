"""What every objective must keep, whoever wrote it: parametrised over the registry."""

import pytest
import torch

from catalign import registry
from catalign.objectives.base import Objective, run_objectives

CASES = [(name, kind) for name in registry.names("objective") for kind in ("vit", "conv")]
OPTIONS = {"contrastive": {"views": None}}  # over-fitting wants the same input at every step
BIDIRECTIONAL = ("masked_item", "attribute_prediction", "segment")  # of those that read behaviour


@pytest.fixture
def encoders_for(encoders_of):
    return lambda name, image="vit": encoders_of(image, causal=name not in BIDIRECTIONAL)


def build(name, encoders, **options):
    torch.manual_seed(1)
    return registry.build("objective", name, encoders, **options)


def step(objective, encoders, batch, generator, chunks=1):
    return run_objectives({"it": objective}, encoders, batch, generator, chunks)["it"]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, encoders_for):
    name, kind = request.param
    encoders = encoders_for(name, kind)
    return build(name, encoders), encoders


def test_class_says_what_it_needs(case):
    objective, encoders = case
    assert objective.modalities
    assert set(objective.modalities) <= set(encoders)
    assert isinstance(objective.stream, str)
    assert not [name for name, _ in objective.named_parameters() if "encoders" in name], "weights saved twice"
    assert "Returns of ``forward``" in type(objective).__doc__


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_finite_and_metrics_carry_no_gradient(case, batch, seeded, training):
    objective, encoders = case
    objective.train(training)
    encoders.train(training)
    outputs = step(objective, encoders, batch, seeded())
    assert torch.isfinite(outputs["loss"])
    assert outputs["loss"].requires_grad
    for name, value in outputs.items():
        assert value.ndim == 0, name
        assert torch.isfinite(value), name
        assert name == "loss" or not value.requires_grad, name


def test_gradients_reach_every_weight(case, batch, seeded):
    objective, encoders = case
    step(objective, encoders, batch, seeded())["loss"].backward()
    used = [(m, p) for m in objective.modalities for _, p in encoders[m].named_parameters() if p.requires_grad]
    unreached = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached, "a weight without gradient stops distributed training"
    assert all(p.grad is not None for _, p in used)
    for modality in objective.modalities:
        assert any(p.grad.abs().sum() > 0 for m, p in used if m == modality)


def test_same_seed_same_loss(case, batch, seeded):
    objective, encoders = case
    encoders.eval()
    first, again = (step(objective, encoders, batch, seeded(3))["loss"].detach() for _ in range(2))
    assert torch.equal(first, again)


def test_prepare_changes_nothing_in_place(case, batch, seeded):
    objective, _ = case
    before = {key: value.clone() for key, value in batch.items()}
    prepared = objective.prepare(batch, seeded())
    assert prepared is not batch
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in before)


@pytest.mark.parametrize("name", registry.names("objective"))
def test_loss_falls_when_over_fitting(name, encoders_for, batch, seeded):
    encoders = encoders_for(name)
    objective = build(name, encoders, **OPTIONS.get(name, {}))
    weights = [p for p in [*encoders.parameters(), *objective.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for _ in range(40):
        loss = step(objective, encoders, batch, seeded(0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("name", registry.names("objective"))
def test_bf16_is_close_to_fp32(name, encoders_for, batch, seeded):
    encoders = encoders_for(name)
    objective = build(name, encoders)
    with torch.no_grad():
        exact = step(objective, encoders, batch, seeded())["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = step(objective, encoders, batch, seeded())["loss"]
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.02)


def test_rows_without_the_modality_do_not_count(case, batch, seeded):
    """What stands in for an absent image or text must change neither loss nor gradient."""
    objective, encoders = case
    encoders.eval()  # batch statistics would carry the absent rows' pixels over
    objective.eval()
    absent = torch.arange(8) >= 6
    losses = []
    for fill in (0, 200):
        changed = dict(batch)
        changed["image"] = torch.where(absent.view(-1, 1, 1, 1), torch.tensor(fill, dtype=torch.uint8), batch["image"])
        changed["has_image"] = ~absent
        losses.append(step(objective, encoders, changed, seeded())["loss"].detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_missing_encoder_is_named(encoders):
    from catalign.errors import CatalignError

    del encoders["text"]
    with pytest.raises(CatalignError, match=r"needed by MaskedLanguageModelling.*'text'"):
        build("mlm", encoders)


def test_default_embedding_is_the_pooled_output(encoders):
    pooled = torch.randn(2, 5)
    assert Objective(encoders).embed("image", pooled) is pooled
