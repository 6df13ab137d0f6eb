"""The contract of ``catalign.testing``, of every registered objective."""

import re

import pytest
import torch
from torch import nn

from catalign import registry
from catalign.errors import CatalignError
from catalign.objectives.base import Objective
from catalign.testing import CHECKS, Case, check_objective
from catalign.testing.objectives import check_seeded

BIDIRECTIONAL = {"behaviour": {"causal": False}}
ENCODERS = dict.fromkeys(("masked_item", "attribute_prediction", "segment"), BIDIRECTIONAL)
ENCODERS["simcse"] = {"text": {"dropout": 0.1}}
TASKS = {name: registry.get("objective", name) for name in registry.names("objective")}
CASES = {
    f"{name}-{image}": Case(task, image=image, encoders=ENCODERS.get(name, {}))
    for name, task in TASKS.items()
    for image in ("vit", "conv")
    if image == "vit" or "image" in task.modalities
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_contract(case, check):
    check(case)


class Broken(Objective):
    """A task that a test breaks in one place.

    Returns of ``forward``:
        ``loss``.
    """

    modalities = ("image",)
    stream = "broken"

    def __init__(self, encoders):
        super().__init__(encoders)
        self.head = nn.Linear(self.encoder("image").width, 1)

    def forward(self, encode, batch):
        scores = self.head(encode("image").pooled)[batch["has_image"]]
        return {"loss": scores.square().mean()}


class Undocumented(Broken):
    """It does not say what it returns."""


class Infinite(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        return {"loss": super().forward(encode, batch)["loss"] / 0}


class Detached(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        return {"loss": self.head(encode("image").pooled.detach()).square().mean()}


class Unseeded(Broken):
    __doc__ = Broken.__doc__
    calls = 0

    def forward(self, encode, batch):
        Unseeded.calls += 1
        return {"loss": super().forward(encode, batch)["loss"] + 1 / Unseeded.calls}


class Unasked(Broken):
    __doc__ = Broken.__doc__

    def prepare(self, batch, generator):
        return {**batch, "noise": torch.rand(3)}


class InPlace(Broken):
    __doc__ = Broken.__doc__

    def prepare(self, batch, generator):
        batch["image"] //= 2
        return batch


class Lossless(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        return {"mse": super().forward(encode, batch)["loss"]}


class Floating(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        return {"loss": super().forward(encode, batch)["loss"].item()}


class Forgotten(Broken):
    __doc__ = Broken.__doc__

    def prepare(self, batch, generator):
        pass


class Stubborn(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        return {"loss": super().forward(encode, batch)["loss"] * 1e-6 + 1}


class Forgetful(Broken):
    __doc__ = Broken.__doc__
    seen = 0

    def forward(self, encode, batch):
        self.seen += 1
        return {"loss": super().forward(encode, batch)["loss"] * self.seen}


class Rounding(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        scores = self.head(encode("image").pooled)
        return {"loss": scores.square().mean() + 100 * (scores.dtype == torch.bfloat16)}


class Blind(Broken):
    __doc__ = Broken.__doc__

    def forward(self, encode, batch):
        return {"loss": self.head(encode("image").pooled).square().mean()}


@pytest.mark.parametrize(
    ("task", "check"),
    [
        *zip([Undocumented, InPlace, Infinite, Detached, Unseeded, Stubborn, Forgetful, Rounding, Blind], CHECKS),
        (Unasked, check_seeded),
    ],
)
def test_every_check_can_fail(task, check):
    with pytest.raises(AssertionError):
        check(Case(task))


@pytest.mark.parametrize(
    ("task", "says"),
    [(Lossless, "no 'loss' among ['mse']"), (Floating, "['loss'] are no tensors"), (Forgotten, "not None")],
)
def test_what_a_task_must_return_is_said(task, says):
    with pytest.raises(AssertionError, match=re.escape(says)):
        check_objective(task)


def test_a_task_that_keeps_the_contract_passes():
    check_objective(Broken)


def test_missing_encoder_is_named(encoders):
    del encoders["text"]
    with pytest.raises(CatalignError, match=r"needed by MaskedLanguageModelling.*'text'"):
        registry.build("objective", "mlm", encoders)


def test_default_embedding_is_the_pooled_output(encoders):
    pooled = torch.randn(2, 5)
    assert Objective(encoders).embed("image", pooled) is pooled
