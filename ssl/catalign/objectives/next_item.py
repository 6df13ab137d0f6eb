"""Next-item prediction: temporal prediction on histories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catalign.objectives.base import Batch, Forward, Objective
from catalign.objectives.items import ItemScores, Loss, check_direction, shift
from catalign.registry import register


@register("objective", "next_item")
class NextItem(Objective):
    """Predict at every position of a history which product comes next (Kang & McAuley 2018, SASRec).

    When to use: to recommend. With ``loss: softmax`` every position is scored against all products that were ever
    bought, which beats SASRec's one drawn negative by a third (Klenitskiy & Vasilev 2023,
    https://arxiv.org/abs/2309.07602). Logits are made at real positions only. Scores are cosines over a temperature, so
    that states and item vectors live in one index (Hou et al. 2022, https://arxiv.org/abs/2204.11067, CORE).

    Args:
        encoders: Needs ``behaviour`` with ``causal: true``.
        loss: ``softmax``, ``sampled`` or ``bce``; see :class:`~catalign.objectives.items.ItemScores`.
        negatives: Products drawn per batch for ``sampled``.
        temperature: Divides cosines.

    Returns of ``forward``:
        ``loss`` in nats per position; ``hit@10``, share of positions with the product among the ten best of all that
        training histories hold, those seen before included. In evaluation only the last position counts.

    Raises:
        CatalignError: A bidirectional encoder, which would see what it should predict.
    """

    modalities = ("behaviour",)
    stream = "shifted_history"
    scores_items = True

    def __init__(
        self, encoders: nn.ModuleDict, *, loss: Loss = "softmax", negatives: int = 1024, temperature: float = 0.1
    ) -> None:
        super().__init__(encoders)
        check_direction(self.encoder("behaviour"), "next_item", causal=True)
        self.scores = ItemScores(self.encoder("behaviour"), loss, negatives, temperature)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Shift histories by one; adds ``next_drawn``, negatives."""
        batch = shift(batch, self.training)
        return {**batch, "next_drawn": self.scores.draw(int(batch["next_mask"].sum()), generator)}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score the next products."""
        chosen = batch["next_mask"]
        states = encode("behaviour").tokens[chosen]
        return self.scores(self.encoder("behaviour"), states, batch["next"][chosen], batch["next_drawn"])
