"""What every pretext task must keep, whoever wrote it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from catalign.data.batches import Batch
from catalign.objectives.base import Objective, run_objectives
from catalign.testing.toys import toy_batch, toy_encoders


@dataclass(frozen=True)
class Case:
    """A pretext task and the toy encoders it is checked on.

    Attributes:
        task: Its class.
        options: Its options.
        image: The toy image encoder, ``vit`` or ``conv``.
        encoders: Options of the toy encoders that differ, by modality, such as ``{"text": {"dropout": 0.1}}``.
    """

    task: type[Objective]
    options: Mapping[str, Any] = field(default_factory=dict)
    image: str = "vit"
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def build(self) -> tuple[Objective, nn.ModuleDict]:
        """The task and its encoders, the same weights each time."""
        torch.manual_seed(1)
        encoders = toy_encoders(self.image, self.encoders)
        return self.task(encoders, **self.options), encoders


def check_objective(
    task: type[Objective],
    *,
    image: str = "vit",
    encoders: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> None:
    """Make all of :data:`CHECKS` of a pretext task.

    Args:
        task: Its class.
        image: As in :class:`Case`.
        encoders: As in :class:`Case`.
        **options: The task's options.

    Raises:
        AssertionError: A check failed; the message says what it asks for.
    """
    for check in CHECKS:
        check(Case(task, options, image, encoders or {}))


def step(objective: Objective, encoders: nn.ModuleDict, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """What one step of training computes of a batch, everything random being drawn from the seed."""
    torch.manual_seed(seed)  # dropout draws from the global generator
    return run_objectives({"it": objective}, encoders, batch, torch.Generator().manual_seed(seed))["it"]


class Training:
    """A task in training on toy batches."""

    def __init__(self, case: Case) -> None:
        objective, encoders = case.build()
        self.model = nn.ModuleDict({"objective": objective, "encoders": encoders})
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=3e-3)

    def step(self, batch: Batch, seed: int) -> float:
        """One step; the loss before it."""
        loss = step(self.model["objective"], self.model["encoders"], batch, seed)["loss"]  # type: ignore[arg-type]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def state(self) -> tuple[Any, Any]:
        """All that a checkpoint holds."""
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))


def check_declaration(case: Case) -> None:
    """The class says what it reads and returns, and does not own the encoders' weights."""
    objective, encoders = case.build()
    assert objective.modalities, "name the encoders it needs: modalities = (…,)"
    assert set(objective.modalities) <= set(encoders)
    assert isinstance(objective.stream, str), "name its stream"
    assert "Returns of ``forward``" in (case.task.__doc__ or ""), "say in the docstring what forward returns"
    owned = {id(p) for p in encoders.parameters()} & {id(p) for p in objective.parameters()}
    assert not owned, "the encoders' weights would be saved twice: call super().__init__(encoders), keep no encoder"


def check_finite(case: Case) -> None:
    """The loss is a finite scalar with a gradient, metrics are finite scalars without, in training and evaluation."""
    for training in (True, False):
        objective, encoders = case.build()
        outputs = step(objective.train(training), encoders.train(training), toy_batch())
        assert isinstance(outputs, dict), f"forward returns a dict with 'loss', not {outputs!r}"
        assert "loss" in outputs, f"forward returns no 'loss' among {sorted(outputs)}"
        floats = sorted(name for name, value in outputs.items() if not isinstance(value, Tensor))
        assert not floats, f"{floats} are no tensors: keep the loss's gradient, and detach() metrics in place of item()"
        assert outputs["loss"].requires_grad, "the loss carries no gradient"
        for name, value in outputs.items():
            assert value.ndim == 0, f"{name} is no scalar"
            assert torch.isfinite(value), f"{name} is {value.item()}"
            assert name == "loss" or not value.requires_grad, f"the metric {name} carries a gradient: detach it"


def check_gradients(case: Case) -> None:
    """Gradients reach every weight of the task and of its encoders."""
    objective, encoders = case.build()
    step(objective, encoders, toy_batch())["loss"].backward()
    named = {"the task": objective, **{modality: encoders[modality] for modality in objective.modalities}}
    for owner, module in named.items():
        weights = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        unreached = [name for name, p in weights if p.grad is None]
        assert not unreached, f"{owner}: no gradient reaches {unreached}, which stops distributed training"
        assert not weights or any(bool(p.grad.any()) for _, p in weights if p.grad is not None), (
            f"{owner}: all gradients are 0"
        )


def check_seeded(case: Case) -> None:
    """The same seed gives the same loss, and ``prepare`` draws from the generator that it is given, not another."""
    first, again = (step(*case.build(), toy_batch(), seed=3)["loss"].detach() for _ in range(2))
    assert torch.equal(first, again), "the loss differs from call to call: draw from the generator of prepare"
    prepared = []
    for seed in range(2):
        objective, _ = case.build()
        torch.manual_seed(seed)
        prepared.append(objective.prepare(toy_batch(), torch.Generator().manual_seed(3)))
    others = [key for key, value in prepared[0].items() if not torch.equal(value, prepared[1][key])]
    assert not others, f"{others} came from the global generator: draw from the one that prepare is given"


def check_prepare(case: Case) -> None:
    """``prepare`` changes nothing in place: other tasks read the same batch."""
    objective, _ = case.build()
    batch = toy_batch()
    before = {key: value.clone() for key, value in batch.items()}
    prepared = objective.prepare(batch, torch.Generator().manual_seed(0))
    assert isinstance(prepared, dict), f"prepare returns the batch, a dict, not {prepared!r}"
    assert batch.keys() == before.keys(), "prepare returns a new dict: {**batch, …}"
    changed = [key for key in before if not torch.equal(batch[key], before[key])]
    assert not changed, f"prepare changed {changed} in place"


def check_learns(case: Case) -> None:
    """The loss of one batch falls by three tenths within 40 steps."""
    training, batch = Training(case), toy_batch()
    losses = [training.step(batch, seed=0) for _ in range(40)]
    assert losses[-1] < losses[0] - 0.3 * abs(losses[0]), f"the loss does not fall: {losses}"


def check_resumes(case: Case) -> None:
    """Training that stops, and goes on from what it saved, equals training without a stop, bit for bit."""
    whole, stopped, resumed = (Training(case) for _ in range(3))
    for number in range(4):
        whole.step(toy_batch(seed=number), number)
    for number in range(2):
        stopped.step(toy_batch(seed=number), number)
    model, optimizer = stopped.state()
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(optimizer)
    for number in range(2, 4):
        resumed.step(toy_batch(seed=number), number)
    expected, actual = whole.model.state_dict(), resumed.model.state_dict()
    changed = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not changed, f"{changed} differ: what a task remembers belongs into a parameter or a registered buffer"


def check_bf16(case: Case) -> None:
    """The loss in bf16 is close to that in fp32, in training and in evaluation."""
    for training in (True, False):
        objective, encoders = case.build()
        objective.train(training)
        encoders.train(training)
        with torch.no_grad():
            exact = step(objective, encoders, toy_batch())["loss"]
            with torch.autocast("cpu", torch.bfloat16):
                rounded = step(objective, encoders, toy_batch())["loss"]
        torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.02)


def check_absent(case: Case) -> None:
    """What stands in for an absent image changes nothing."""
    objective, encoders = case.build()
    objective.eval()
    encoders.eval()  # batch statistics would carry the absent rows' pixels over
    batch = toy_batch()
    absent = torch.arange(8) >= 6
    losses = []
    for fill in (0, 200):
        pixels = torch.where(absent.view(-1, 1, 1, 1), torch.tensor(fill, dtype=torch.uint8), batch["image"])
        losses.append(step(objective, encoders, {**batch, "image": pixels, "has_image": ~absent})["loss"].detach())
    torch.testing.assert_close(
        losses[0], losses[1], rtol=1e-5, atol=1e-6, msg="rows without an image count: leave out what has_image denies"
    )


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_declaration,
    check_prepare,
    check_finite,
    check_gradients,
    check_seeded,
    check_learns,
    check_resumes,
    check_bf16,
    check_absent,
)
