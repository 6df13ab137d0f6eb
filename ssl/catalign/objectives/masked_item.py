"""Masked-item prediction: the cloze task on histories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective
from catalign.objectives.items import ItemScores, Loss, check_direction, hidden_items, hide
from catalign.registry import register


@register("objective", "masked_item")
class MaskedItem(Objective):
    """Predict hidden products from both sides (Sun et al. 2019, https://arxiv.org/abs/1904.06690, BERT4Rec).

    When to use: to pretrain an encoder that ``next_item`` then trains with ``causal: true``, or alone. With
    ``loss: bce`` it is S3-Rec's masked-item task (Zhou et al. 2020, https://arxiv.org/abs/2008.07873).

    Args:
        encoders: Needs ``behaviour`` with ``causal: false``.
        rate: Share of products hidden, besides the last one, which is cut off and predicted after the end.
        loss: ``softmax``, ``sampled`` or ``bce``; see :class:`~catalign.objectives.items.ItemScores`.
        negatives: Products drawn per batch for ``sampled``.
        temperature: Divides cosines.

    Returns of ``forward``:
        ``loss`` in nats per hidden product; ``hit@10``, share of them among the ten best of all products. In evaluation
        the last product alone is predicted.

    Raises:
        CatalignError: A causal encoder, or a rate that is not between 0 and 1.
    """

    modalities = ("behaviour",)
    stream = "masked_history"
    corrupts = True
    scores_items = True

    def __init__(
        self,
        encoders: nn.ModuleDict,
        *,
        rate: float = 0.3,
        loss: Loss = "softmax",
        negatives: int = 1024,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(encoders)
        check_direction(self.encoder("behaviour"), "masked_item", causal=False)
        if not 0 < rate < 1:
            raise CatalignError(f"masked_item: rate {rate} is not between 0 and 1", "0.3 is usual")
        self.rate = rate
        self.scores = ItemScores(self.encoder("behaviour"), loss, negatives, temperature)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide products; adds ``hidden_drawn``, negatives."""
        batch = hide(batch, self.rate, self.encoder("behaviour").mask_row, self.training, generator)
        count = int(batch["hidden"].sum() + batch["last"].sum())
        return {**batch, "hidden_drawn": self.scores.draw(count, generator)}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score the hidden products."""
        return self.scores(self.encoder("behaviour"), *hidden_items(encode, batch), batch["hidden_drawn"])
