import pytest
import torch
from torch import nn

from catalign.config import TrainerConfig
from catalign.errors import CatalignError
from catalign.training.model import Model
from catalign.training.optim import build_optimizer, warmup_cosine


def model():
    encoders = nn.ModuleDict({"text": nn.Linear(3, 2), "image": nn.Linear(3, 2)})
    return Model(encoders, nn.ModuleDict({"head": nn.Linear(2, 2)}), {"head": 1.0})


def test_vectors_do_not_decay_and_encoders_have_their_own_rate():
    groups = build_optimizer(model(), TrainerConfig(lr=1.0, lr_scale={"image": 0.1}, weight_decay=0.3)).param_groups
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert found == {(1.0, 0.3): 2, (1.0, 0.0): 2, (0.1, 0.3): 1, (0.1, 0.0): 1}


def test_an_unknown_encoder_in_lr_scale_names_the_nearest():
    with pytest.raises(CatalignError, match="did you mean 'image'"):
        build_optimizer(model(), TrainerConfig(lr_scale={"imag": 0.1}))


def test_frozen_parameters_are_left_out():
    m = model()
    m.encoders["text"].requires_grad_(False)
    assert sum(len(g["params"]) for g in build_optimizer(m, TrainerConfig()).param_groups) == 4


def test_warmup_cosine_rises_to_the_peak_then_falls_to_the_final_share():
    values = torch.tensor([warmup_cosine(step, 100, 0.1, 0.05) for step in range(101)])
    assert values[0] == pytest.approx(0.1)
    assert values[9] == 1 == values.max()
    assert (values[10:].diff() <= 0).all()
    assert values[100] == pytest.approx(0.05)
