"""Two views of a product's texts are near each other, those of different products apart."""

from __future__ import annotations

import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from catalign.data.batches import SECOND
from catalign.objectives.base import Batch, Forward, Objective, full_precision, present, uniform, unit
from catalign.objectives.scores import two_way
from catalign.registry import register


@register("objective", "text_views")
class TextViews(Objective):
    """Tell products apart by their words.

    When to use: beside ``mlm``, which alone makes words that may stand for each other alike: colours, brands. Search
    needs them apart.

    A view is a text of which a share of the tokens is hidden (Izacard et al. 2022, Contriever's independent cropping,
    https://arxiv.org/abs/2112.09118). Both views are of the text, or, in a stage that sets ``second_text``, the second
    is of that: a title and its description (Wang et al. 2022, https://arxiv.org/abs/2212.03533). The loss is InfoNCE in
    both directions; rows of one group are positives of each other.

    Args:
        encoders: Needs ``text``.
        temperature: Divides cosines.
        drop_tokens: Share of ordinary tokens hidden in each view.
        width: Output of the projection head, which is thrown away after pretraining.

    Returns of ``forward``:
        ``loss`` in nats; ``accuracy``, share of views whose nearest candidate is a view of the same product.
    """

    modalities = ("text",)
    stream = "text_views"

    def __init__(
        self, encoders: nn.ModuleDict, *, temperature: float = 0.05, drop_tokens: float = 0.3, width: int = 128
    ) -> None:
        super().__init__(encoders)
        self.temperature, self.drop_tokens = temperature, drop_tokens
        features = self.encoder("text").width
        self.head = SimCLRProjectionHead(features, features, width)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide tokens of the text and of the second one, which is the text again where a stage has none.

        Views are random in evaluation too: without them there is no task.
        """
        batch = {**batch, "has_text": present(batch, "text")}
        for key in ("tokens", "token_mask"):
            batch.setdefault(SECOND + key, batch[key])
        batch.setdefault("has_second", batch["has_text"])
        specials = self.encoder("text").vocabulary.specials
        for prefix in ("", SECOND):
            tokens, mask = batch[f"{prefix}tokens"], batch[f"{prefix}token_mask"]
            batch[f"{prefix}token_mask"] = drop_tokens(tokens, mask, specials, self.drop_tokens, generator)
        return batch

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Project the views and score them."""
        first, second = (unit(self.head(encode("text", prefix).pooled)) for prefix in ("", SECOND))
        with full_precision(first.device):
            valid = batch["has_text"] & batch["has_second"]
            loss, accuracy = two_way(first, second, 1 / self.temperature, key=batch["group"], valid=valid)
        return {"loss": loss, "accuracy": accuracy}


def drop_tokens(tokens: Tensor, mask: Tensor, specials: list[int], share: float, generator: torch.Generator) -> Tensor:
    """Hide a share of each text's ordinary tokens from attention: (B, L) ids and (B, L) bool -> (B, L) bool.

    A text never loses all of its words.
    """
    ordinary = mask & ~torch.isin(tokens, torch.tensor(specials, device=tokens.device))
    kept = ordinary & (uniform(tuple(tokens.shape), generator) >= share)
    kept = torch.where(kept.any(1, keepdim=True), kept, ordinary)
    return kept | (mask & ~ordinary)


def random_run(tokens: Tensor, mask: Tensor, longest: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut each text to a random run of its tokens, 1 to ``longest`` of them, between its first and last ones.

    Args:
        tokens: (B, L) as [CLS] … [SEP] and padding.
        mask: (B, L) bool, False on padding.
        longest: Tokens kept at most, the special ones not counted.
        generator: Source of randomness.

    Returns:
        (B, K) tokens and their mask, K being that of the longest run drawn. A text of no tokens stays as it is.
    """
    inner = mask.sum(1) - 2
    draws = uniform((2, len(tokens)), generator)
    kept = 1 + (draws[0] * inner.clamp(max=longest)).long()
    kept = torch.minimum(kept, inner.clamp(min=0))
    start = (draws[1] * (inner - kept + 1)).long()
    places = torch.arange(int(kept.max()) + 2, device=tokens.device).expand(len(tokens), -1)
    last = kept[:, None] + 1
    source = torch.where(places == 0, 0, places + start[:, None])
    source = torch.where(places >= last, inner[:, None] + 1, source)
    # Beyond its end a text repeats its last token, masked: padding needs no token of its own.
    return tokens.gather(1, source), places <= last
