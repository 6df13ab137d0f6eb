"""Segment prediction: which part was cut out of a history."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective, full_precision, uniform, unit
from catalign.objectives.items import check_direction
from catalign.objectives.scores import two_way
from catalign.registry import register

SEGMENT = "segment_"


@register("objective", "segment")
class Segment(Objective):
    """Match a history to the segment cut out of it (Zhou et al. 2020, https://arxiv.org/abs/2008.07873, S3-Rec).

    When to use: to pretrain on histories of about five products or more, beside ``masked_item``. A run of consecutive
    products is hidden; the rest must find it among the segments of all histories of the batch, and back (InfoNCE, where
    S3-Rec draws one other segment).

    Args:
        encoders: Needs ``behaviour`` with ``causal: false``.
        share: Longest segment, as a share of the history; at least one product is cut, and one is left.
        temperature: Divides cosines.

    Returns of ``forward``:
        ``loss`` in nats; ``accuracy``, share of histories and segments that find each other first. Histories of one
        product take no part.

    Raises:
        CatalignError: A causal encoder, or a share that is not between 0 and 1.
    """

    modalities = ("behaviour",)
    stream = "segments"

    def __init__(self, encoders: nn.ModuleDict, *, share: float = 0.5, temperature: float = 0.1) -> None:
        super().__init__(encoders)
        check_direction(self.encoder("behaviour"), "segment", causal=False)
        if not 0 < share < 1:
            raise CatalignError(f"segment: share {share} is not between 0 and 1", "0.5 is usual")
        self.share, self.temperature = share, temperature
        self.head = nn.Linear(self.encoder("behaviour").width, self.encoder("behaviour").width, bias=False)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Cut segments; adds ``segment_history`` and ``segment_history_mask``, and ``has_segment`` (B,)."""
        history, mask = batch["history"], batch["history_mask"]
        lengths = mask.sum(1, keepdim=True)
        longest = (lengths * self.share).long().clamp(min=1)
        size = (uniform(tuple(lengths.shape), generator) * longest).long() + 1
        start = (uniform(tuple(lengths.shape), generator) * (lengths - size + 1)).long()
        places = torch.arange(mask.shape[1], device=mask.device)
        inside = (places >= start) & (places < start + size) & mask
        width = int(size.max())
        source = (start + places[:width]).clamp(max=mask.shape[1] - 1)
        return {
            **batch,
            "history": history.masked_fill(inside, self.encoder("behaviour").mask_row),
            f"{SEGMENT}history": history.gather(1, source),
            f"{SEGMENT}history_mask": places[:width] < size,
            "has_segment": lengths.squeeze(1) > 1,
        }

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score histories against segments."""
        rest, segments = (unit(self.head(encode("behaviour", prefix).pooled)) for prefix in ("", SEGMENT))
        with full_precision(rest.device):
            loss, accuracy = two_way(
                rest, segments, 1 / self.temperature, key=batch["index"], valid=batch["has_segment"]
            )
        return {"loss": loss, "accuracy": accuracy}
