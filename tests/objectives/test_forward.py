"""Sharing forward passes, and encoding in chunks."""

import pytest
import torch
from torch import nn

from catalign import registry
from catalign.objectives.base import Forward, frozen_statistics, masked_mean, run_objectives, split


def gradients(encoders, objective, batch, generator, chunks):
    for module in (encoders, objective):
        module.zero_grad(set_to_none=True)
    output = run_objectives({"it": objective}, encoders, batch, generator, chunks)["it"]
    output["loss"].backward()
    named = [*encoders.named_parameters(), *objective.named_parameters()]
    return output["loss"].detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("chunks", [3, 8, 20])
def test_chunks_give_the_gradients_of_one_shot(encoders, batch, seeded, loss, chunks):
    objective = registry.build("objective", "contrastive", encoders, loss=loss).double()
    encoders.double()
    batch["group"] = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    whole_loss, whole = gradients(encoders, objective, batch, seeded(), 1)
    chunked_loss, chunked = gradients(encoders, objective, batch, seeded(), chunks)
    torch.testing.assert_close(chunked_loss, whole_loss, rtol=1e-12, atol=0)
    assert whole.keys() == chunked.keys()
    assert whole["log_scale"].abs() > 1e-6
    for name in whole:
        torch.testing.assert_close(chunked[name], whole[name], rtol=1e-9, atol=1e-12, msg=name)


def test_chunks_are_encoded_one_at_a_time(encoders, batch):
    peak = 0
    block = encoders["image"].model.vit.blocks[0].mlp

    def count(module, inputs, output):
        nonlocal peak
        peak = max(peak, len(inputs[0]))

    block.register_forward_hook(count)
    Forward(encoders, batch, chunks=4)("image").pooled.sum().backward()
    assert peak == 2


def test_batch_statistics_count_once_under_chunks(encoders_of, batch):
    once, twice = (encoders_of("conv") for _ in range(2))
    twice.load_state_dict(once.state_dict())
    for part in split({"image": batch["image"]}, 2):
        Forward(once, part)("image").pooled.sum().backward()
    Forward(twice, batch, chunks=2)("image").pooled.sum().backward()
    for (name, expected), actual in zip(once.named_buffers(), twice.buffers()):
        if "running" in name:
            torch.testing.assert_close(actual, expected, msg=name)


def test_frozen_statistics_come_back():
    norm = nn.BatchNorm1d(2)
    with frozen_statistics(norm):
        assert norm.momentum == 0
    assert norm.momentum == 0.1


def test_one_stream_is_encoded_once(encoders, batch, seeded):
    calls = {"text": 0, "image": 0}
    for modality in calls:
        encoders[modality].register_forward_hook(lambda *_, m=modality: calls.update({m: calls[m] + 1}))
    names = ["inpainting", "simclr", "mlm", "nsp"]
    objectives = {name: registry.build("objective", name, encoders) for name in names}
    outputs = run_objectives(objectives, encoders, batch, seeded())
    assert list(outputs) == names
    assert calls == {"text": 1, "image": 1}


def test_masks_come_after_views_whatever_the_order(encoders, batch, seeded):
    objectives = {name: registry.build("objective", name, encoders) for name in ("inpainting", "simclr")}
    seen = {}
    encoders["image"].register_forward_hook(lambda module, inputs, output: seen.update(inputs[0]))
    run_objectives(objectives, encoders, batch, seeded())
    assert len(seen["image"]) == len(seen["image_keep"]) == 2 * len(batch["image"])


def test_cached_features_replace_the_encoder(encoders, batch, seeded):
    features = torch.randn(8, encoders["image"].width)
    encoders["image"].forward = None
    del batch["image"]
    encoded = Forward(encoders, {**batch, "image_features": features})("image")
    assert encoded.pooled is features
    assert encoded.tokens.shape == (8, 1, features.shape[1])
    objective = registry.build("objective", "contrastive", encoders)
    outputs = run_objectives({"it": objective}, encoders, {**batch, "image_features": features}, seeded())
    assert torch.isfinite(outputs["it"]["loss"])


def test_prepare_runs_in_full_precision_without_gradient(encoders, batch, seeded):
    objective = registry.build("objective", "simclr", encoders)
    seen = []
    encoders["image"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]["image"]))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            run_objectives({"it": objective}, encoders, batch, seeded())
    assert torch.equal(*seen)
    assert not seen[0].requires_grad


def test_masked_mean():
    values = torch.tensor([1.0, float("nan"), 5.0])
    assert masked_mean(values, torch.tensor([True, False, True])) == 3
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0
