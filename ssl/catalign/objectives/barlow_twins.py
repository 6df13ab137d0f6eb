"""Barlow Twins: two views of one image agree in every feature, and no two features say the same."""

from __future__ import annotations

import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor, nn

from catalign.objectives.base import Batch, Forward, Objective, full_precision, present
from catalign.objectives.views import Views, augment
from catalign.registry import register


@register("objective", "barlow_twins")
class BarlowTwins(Objective):
    """Make features of two views equal and independent (Zbontar et al. 2021, https://arxiv.org/abs/2103.03230).

    When to use: in place of ``simclr`` where batches are small or products much alike: there are no negatives, so none
    can be false.

    The features are projected and standardised over the batch; their cross-correlation between the two views should be
    the identity. The loss is lightly's, divided by the width: views that have nothing in common, and features that are
    all the same, score about 1 whatever the width.

    Args:
        encoders: Needs ``image``.
        redundancy: Weight of the correlations of different features (the paper's lambda).
        width: Output and hidden layers of the projection head, which is thrown away after pretraining.
        views: How views differ.

    Returns of ``forward``:
        ``loss``, squared distance of the correlations from the identity per feature; 0 in a batch of fewer than two
        images.
    """

    modalities = ("image",)
    stream = "barlow_twins"

    def __init__(
        self,
        encoders: nn.ModuleDict,
        *,
        redundancy: float = 0.005,
        width: int = 512,
        views: Views = Views(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(encoders)
        self.width, self.views = width, views
        self.head = BarlowTwinsProjectionHead(self.encoder("image").width, width, width)
        self.score = BarlowTwinsLoss(redundancy, gather_distributed=True)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Two views of each image: ``image`` (2B, 3, h, w), first views first; so too ``has_image``.

        Views are random in evaluation too: without them there is no task.
        """
        encoder = self.encoder("image")
        views = [encoder.normalise(augment(batch["image"], encoder.size, self.views, generator)) for _ in range(2)]
        return {**batch, "has_image": present(batch, "image").repeat(2), "image": torch.cat(views)}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Project the views of the images that are there and correlate them."""
        there = batch["has_image"]
        enough = there.sum() > 2  # views, of more than one image
        features = encode("image").pooled[there | ~enough]
        first, second = self.head(features).chunk(2)
        with full_precision(first.device):
            return {"loss": self.score(first.float(), second.float()) / self.width * enough}
