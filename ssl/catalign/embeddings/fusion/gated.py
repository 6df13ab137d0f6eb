"""A learned gate and correction, trained so that any subset of a product's modalities lands in one place."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from catalign.embeddings.fusion.base import Fusion
from catalign.objectives.scores import two_way
from catalign.registry import register

_HELD_OUT = 0.1  # share of the products on which the best step is chosen
_MOST_HELD_OUT = 1024


class GateNetwork(nn.Module):
    """normalised(sum of gate times vector, plus a correction), both from all vectors and the presence mask.

    It starts as the plain mean of what is present, since its last layers start at zero.

    Args:
        modalities: M.
        width: D of every modality and of the output.
        hidden: Width of the hidden layer.
        dropout: Of the hidden layer.
    """

    def __init__(self, modalities: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(modalities * (width + 1), hidden), nn.GELU(), nn.Dropout(dropout))
        self.gate, self.correction = nn.Linear(hidden, modalities), nn.Linear(hidden, width)
        for layer in (self.gate, self.correction):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """(B, D) of length 1 from vectors (B, M, D) and what is present (B, M) bool, at least one in a row."""
        values = values * mask[..., None]
        hidden = self.body(torch.cat([values.flatten(1), mask.float()], dim=1))
        gates = self.gate(hidden).masked_fill(~mask, -torch.inf).softmax(dim=1)
        return functional.normalize((gates[..., None] * values).sum(1) + self.correction(hidden), dim=1)


@register("fusion", "gated")
class Gated(Fusion):
    """A gate between the modalities and a correction of their mean, with the presence mask as input.

    Trained on stored vectors: two random subsets of what a product has (text alone, image alone, both) are each other's
    positive, as are products of one group, against the rest of the batch (InfoNCE). The step that is best on held-out
    products is kept, the plain mean at the start included. The output lies in the space of the inputs.

    Args:
        hidden: Width of the hidden layer.
        dropout: Of the hidden layer.
        steps: Training steps.
        batch_size: Products per step.
        lr: Peak learning rate.
        weight_decay: Of AdamW.
        temperature: Of InfoNCE.
        seed: Seed of everything random.

    References:
        Arevalo et al., Gated Multimodal Units for Information Fusion, 2017 (the gate).
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018 (InfoNCE).
    """

    name = "gated"

    def __init__(
        self,
        *,
        hidden: int = 256,
        dropout: float = 0.1,
        steps: int = 300,
        batch_size: int = 512,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        temperature: float = 0.07,
        seed: int = 0,
    ) -> None:
        options: dict[str, Any] = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__(**options)
        self.network: GateNetwork | None = None

    def _build(self) -> GateNetwork:
        self._one_width()
        return GateNetwork(len(self.names), self.widths[0], self.options["hidden"], self.options["dropout"])

    def _fuse(self, values: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
        assert self.network is not None
        with torch.inference_mode():
            stacked = torch.from_numpy(np.stack(values, axis=1).astype(np.float32))
            return self.network.eval()(stacked, torch.from_numpy(mask)).numpy()

    def _learn(self, values: list[np.ndarray], mask: np.ndarray, groups: np.ndarray, progress: bool) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options["seed"])
            self.network = self._build()
            inputs = torch.from_numpy(np.stack(values, axis=1).astype(np.float32))
            self._train(inputs, torch.from_numpy(mask), torch.from_numpy(groups.astype(np.int64)), progress)

    def _train(self, values: Tensor, mask: Tensor, groups: Tensor, progress: bool) -> None:
        network, options = self.network, self.options
        assert network is not None
        train, held_out = _divide(groups)
        optimiser = torch.optim.AdamW(network.parameters(), lr=options["lr"], weight_decay=options["weight_decay"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options["lr"], options["steps"] + 1, pct_start=0.1)
        best, kept = self._held_out_loss(values, mask, groups, held_out), copy.deepcopy(network.state_dict())
        every = max(1, options["steps"] // 10)
        for step in track(range(1, options["steps"] + 1), "fitting the gated fusion", disable=not progress):
            network.train()
            rows = train[torch.randint(len(train), (min(options["batch_size"], len(train)),))].unique()
            one, other = (network(values[rows], _subset(mask[rows])) for _ in range(2))
            loss = self._loss(one, other, groups[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % every == 0 and (now := self._held_out_loss(values, mask, groups, held_out)) < best:
                best, kept = now, copy.deepcopy(network.state_dict())
        network.load_state_dict(kept)

    def _loss(self, one: Tensor, other: Tensor, groups: Tensor) -> Tensor:
        everyone = torch.ones_like(groups, dtype=torch.bool)
        return two_way(one, other, 1 / self.options["temperature"], key=groups, valid=everyone)[0]

    @torch.no_grad()
    def _held_out_loss(self, values: Tensor, mask: Tensor, groups: Tensor, rows: Tensor) -> float:
        """Mean over pairs of subsets that products with everything have: each modality alone, and all."""
        assert self.network is not None
        self.network.eval()
        rows = rows[mask[rows].all(1)] if mask[rows].all(1).any() else rows
        subsets = [*torch.eye(mask.shape[1], dtype=torch.bool), torch.ones(mask.shape[1], dtype=torch.bool)]
        fused = [self.network(values[rows], _some(mask[rows] & subset, mask[rows])) for subset in subsets]
        losses = [float(self._loss(one, other, groups[rows])) for one, other in combinations(fused, 2)]
        return sum(losses) / len(losses)

    def _state(self) -> dict[str, np.ndarray]:
        assert self.network is not None
        return {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.network = self._build()
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def _divide(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out; products of one group stay together."""
    numbers, member = groups.unique(return_inverse=True)
    share = min(_HELD_OUT, _MOST_HELD_OUT / len(groups))
    chosen = torch.zeros(len(numbers), dtype=torch.bool)
    chosen[torch.randperm(len(numbers))[: max(1, int(share * len(numbers)))]] = True
    held_out = chosen[member]
    rows = torch.arange(len(groups))
    return (rows[~held_out], rows[held_out]) if len(numbers) > 1 else (rows, rows)


def _subset(mask: Tensor) -> Tensor:
    """A random part of what each row has: each modality with even odds, and everything where none was drawn."""
    kept = mask & (torch.rand(mask.shape) < 0.5)
    return _some(kept, mask)


def _some(subset: Tensor, mask: Tensor) -> Tensor:
    return torch.where(subset.any(1, keepdim=True), subset, mask)
