"""Time-gap prediction: when a user comes back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign.data.catalogue import Catalogue
from catalign.data.interactions import TRAIN
from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective, full_precision, masked_mean
from catalign.objectives.items import check_direction, shift
from catalign.registry import register


@register("objective", "time_gap")
class TimeGap(Objective):
    """Predict at every position of a history how long the user stays away.

    When to use: beside ``next_item``, on logs with times: it asks for rhythm, the other for taste. The target is
    log(1 + seconds) to the next event, standardised over the training histories, under a Huber loss, as values that
    span seconds to years want (Du et al. 2016, https://doi.org/10.1145/2939672.2939875).

    Args:
        encoders: Needs ``behaviour`` with ``causal: true``.

    Returns of ``forward``:
        ``loss``; ``baseline_loss``, of always predicting the mean; ``error``, the mean absolute error in standard
        deviations of the logarithm.

    Raises:
        CatalignError: A bidirectional encoder, or histories without times.
    """

    modalities = ("behaviour",)
    stream = "shifted_history"

    def __init__(self, encoders: nn.ModuleDict) -> None:
        super().__init__(encoders)
        encoder = self.encoder("behaviour")
        check_direction(encoder, "time_gap", causal=True)
        self.mean, self.spread = log_gaps(encoder.catalogue)
        self.head = nn.Sequential(nn.Linear(encoder.width, encoder.width), nn.GELU(), nn.Linear(encoder.width, 1))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Shift histories by one."""
        return shift(batch, self.training)

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Predict the gaps."""
        chosen = batch["next_mask"]
        predicted = self.head(encode("behaviour").tokens[chosen]).squeeze(1)
        with full_precision(predicted.device):
            gaps = batch["next_gap"][chosen].clamp(min=0).float()
            targets = (torch.log1p(gaps) - self.mean) / self.spread
            predicted, every = predicted.float(), torch.ones_like(targets, dtype=torch.bool)
            return {
                "loss": masked_mean(F.smooth_l1_loss(predicted, targets, reduction="none"), every),
                "baseline_loss": masked_mean(F.smooth_l1_loss(0 * targets, targets, reduction="none"), every),
                "error": masked_mean((predicted.detach() - targets).abs(), every),
            }


def log_gaps(catalogue: Catalogue) -> tuple[float, float]:
    """Mean and standard deviation of log(1 + seconds) between consecutive training events.

    Raises:
        CatalignError: There are no times, or no two events follow each other.
    """
    histories = catalogue.histories
    if histories is None or histories.times is None:
        raise CatalignError(
            "time_gap: the histories have no times", "name the log's column of times: data.interactions.columns.time"
        )
    kept = histories.splits.values == TRAIN
    times, owners = histories.times.values[kept], histories.owners[kept]
    gaps = np.log1p(np.diff(times)[np.diff(owners) == 0].clip(min=0))
    if not len(gaps):
        raise CatalignError("time_gap: no user has two training events", "give longer histories")
    return float(gaps.mean()), float(max(gaps.std(), 1e-6))
