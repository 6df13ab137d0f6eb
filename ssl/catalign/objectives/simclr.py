"""SimCLR: two views of one image close together, those of different images apart."""

from __future__ import annotations

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.utils import dist
from torch import Tensor, nn

from catalign.objectives.base import Batch, Forward, Objective, full_precision, gather, masked_mean, present, unit
from catalign.objectives.views import Views, augment
from catalign.registry import register


@register("objective", "simclr")
class SimCLR(Objective):
    """Contrast two random views of each image (Chen et al. 2020, https://arxiv.org/abs/2002.05709).

    When to use: for an image encoder without labels or texts, in batches of a hundred images or more. What the views
    change, features learn to ignore: keep ``views.hue`` and ``views.greyscale`` low where colour matters.

    The loss is NT-Xent (normalised, temperature-scaled cross-entropy): each view looks for the other view of its image
    among all views of all ranks. Other photos of the same ``group`` are the same product, so they are no negatives.

    Args:
        encoders: Needs ``image``.
        temperature: Divides cosines; lower looks harder at the nearest negatives.
        width: Output of the projection head, which is thrown away after pretraining.
        hidden: Its hidden layer; null for the encoder's width.
        mask_groups: Leave images of the same group out of the negatives.
        views: How views differ.

    Returns of ``forward``:
        ``loss`` in nats; ``accuracy``, share of views whose nearest candidate is the other view of their image.
    """

    modalities = ("image",)
    stream = "image_views"

    def __init__(
        self,
        encoders: nn.ModuleDict,
        *,
        temperature: float = 0.2,
        width: int = 128,
        hidden: int | None = None,
        mask_groups: bool = True,
        views: Views = Views(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(encoders)
        self.temperature, self.mask_groups, self.views = temperature, mask_groups, views
        features = self.encoder("image").width
        self.head = SimCLRProjectionHead(features, hidden or features, width)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Two views of each image: ``image`` (2B, 3, h, w), first views first; so too ``group`` and ``has_image``.

        Views are random in evaluation too: without them there is no task.
        """
        encoder = self.encoder("image")
        views = [encoder.normalise(augment(batch["image"], encoder.size, self.views, generator)) for _ in range(2)]
        twice = {"group": batch["group"].repeat(2), "has_image": present(batch, "image").repeat(2)}
        return {**batch, **twice, "image": torch.cat(views)}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Project the views and score them."""
        projected = self.head(encode("image").pooled)
        with full_precision(projected.device):
            group = batch["group"] if self.mask_groups else None
            loss, accuracy = nt_xent(projected, batch["has_image"], self.temperature, group)
        return {"loss": loss, "accuracy": accuracy}


def nt_xent(views: Tensor, valid: Tensor, temperature: float, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """NT-Xent over all ranks, without false negatives. It equals lightly's ``NTXentLoss`` when no two groups are equal.

    Args:
        views: (2B, D) projections: row i and row i + B are views of one image.
        valid: (2B,) bool; other rows are neither anchors nor candidates.
        temperature: Divides cosines.
        group: (2B,) rows of the same group are no negatives of each other; None for negatives everywhere.

    Returns:
        The loss, and the share of anchors whose nearest candidate is their other view.
    """
    views = unit(views)
    count = len(views)
    anchor = torch.arange(count, device=views.device)
    other = (anchor + count // 2) % count + dist.rank() * count
    logits = views @ gather(views).T / temperature
    excluded = ~gather(valid.int()).bool().expand_as(logits)
    if group is not None:
        excluded = excluded | (group[:, None] == gather(group))
    excluded = excluded.scatter(1, other[:, None], False)
    excluded = excluded.scatter(1, (anchor + dist.rank() * count)[:, None], True)
    logits = logits.masked_fill(excluded, -torch.inf)
    positive = logits.gather(1, other[:, None]).squeeze(1)
    nearest = logits.detach().argmax(1) == other
    return masked_mean(logits.logsumexp(1) - positive, valid), masked_mean(nearest.to(views.dtype), valid)
