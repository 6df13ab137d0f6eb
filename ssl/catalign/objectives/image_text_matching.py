"""Image-text matching: does this photo show what this text says?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign.objectives.base import Batch, Forward, Objective, full_precision, masked_mean, present, uniform, unit
from catalign.registry import register


@register("objective", "image_text_matching")
class ImageTextMatching(Objective):
    """Tell a product's own photo from a similar one (Li et al. 2021, https://arxiv.org/abs/2107.07651, ALBEF).

    When to use: beside ``contrastive``, in its stage, for products that differ in details: every negative is one that
    the model still confuses. Alone it learns slowly.

    Each text is paired with its photo and with a photo of another product, each photo also with a text of another one.
    These are drawn from the batch of this rank, a pair of cosine c with odds exp(c / temperature); products of the same
    group are never drawn. A head on the two projected features says whether a pair matches: the scaled cosine plus a
    two-layer correction from the features' products. In evaluation negatives are drawn in the same way, so a better
    model meets harder ones.

    Args:
        encoders: Needs ``text`` and ``image``.
        width: Width of the common space, which embeddings are of where no objective before this one projects.
        temperature: Divides the cosines by which negatives are drawn; high draws all alike.

    Returns of ``forward``:
        ``loss``, binary cross-entropy in nats, .637 for a model that knows only that one pair in three matches;
        ``accuracy``, share of pairs told right, .667 for the answer "no".
    """

    modalities = ("text", "image")
    stream = "contrastive"

    def __init__(self, encoders: nn.ModuleDict, *, width: int = 256, temperature: float = 0.1) -> None:
        super().__init__(encoders)
        self.temperature = temperature
        self.heads = nn.ModuleDict({name: nn.Linear(self.encoder(name).width, width) for name in self.modalities})
        self.correction = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The noise that negatives are drawn with: ``matching_noise`` (2, B, B), standard Gumbel."""
        rows = len(batch["group"])
        exponential = -uniform((2, rows, rows), generator, low=1e-9).log()
        return {**batch, "matching_noise": -exponential.log()}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Draw negatives and score all pairs."""
        text, image = (self.embed(name, encode(name).pooled) for name in self.modalities)
        valid = present(batch, "text") & present(batch, "image")
        with full_precision(text.device):
            cosines = (text @ image.T).detach() / self.temperature
            other = valid & (batch["group"][:, None] != batch["group"])
            images, texts = (
                drawn(scores, other, noise)
                for scores, noise in zip((cosines, cosines.T), batch["matching_noise"], strict=True)
            )
            pairs = torch.cat([text, text, text[texts]]), torch.cat([image, image[images], image])
            logits = self.score(*pairs)
            matching = torch.arange(len(logits), device=logits.device) < len(valid)
            counted = valid & other.any(1)
            counts = torch.cat([valid, counted, counted])
            loss = F.binary_cross_entropy_with_logits(logits, matching.to(logits.dtype), reduction="none")
            right = ((logits.detach() > 0) == matching).to(logits.dtype)
            return {"loss": masked_mean(loss, counts), "accuracy": masked_mean(right, counts)}

    def score(self, text: Tensor, image: Tensor) -> Tensor:
        """Logits (B,) that pairs match, of (B, W) projected texts and images."""
        products = text * image
        return self.scale * products.sum(1) + self.correction(products * products.shape[1]).squeeze(1)

    def embed(self, modality: str, pooled: Tensor) -> Tensor:
        """(B, D) pooled -> (B, width) of length 1; pooled itself where the modality has no head."""
        return unit(self.heads[modality](pooled)) if modality in self.heads else pooled


def drawn(scores: Tensor, allowed: Tensor, noise: Tensor) -> Tensor:
    """One column of each row, drawn with odds exp(score) among the allowed ones (Gumbel's trick): (B,) columns.

    Args:
        scores: (B, B).
        allowed: (B, B) bool. A row without any gets column 0.
        noise: (B, B) standard Gumbel.
    """
    return (scores + noise).masked_fill(~allowed, -torch.inf).argmax(1)
