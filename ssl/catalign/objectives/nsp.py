"""Next-sentence prediction."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign.objectives.base import Batch, Forward, Objective, masked_mean, uniform
from catalign.registry import register


@register("objective", "nsp")
class NextSentencePrediction(Objective):
    """Tell whether two pieces of text belong to one product (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    When to use: with ``mlm``, on texts of several sentences. It trains the [CLS] token, which masked language modelling
    leaves alone, to say what a text is about.

    A text is cut at a random sentence end within it: ``[CLS] A [SEP] B [SEP]``, B in segment 1. Half of the rows, drawn
    at random, get their B from another row of the batch that is another product; it is cut where the pair would exceed
    the longest text of the batch by more than its added [SEP]. Texts of one sentence (titles) take no part; they go on
    unchanged to the other objectives of the stream.

    Args:
        encoders: Needs ``text``, with a ``vocabulary``.

    Returns of ``forward``:
        ``loss``: binary cross-entropy in nats, 0 when no row takes part (chance is .69). ``accuracy`` of the rows that
        do (chance is .5). ``share`` of rows that do.
    """

    modalities = ("text",)
    stream = "masked_text"
    sentence_ends: Tensor

    def __init__(self, encoders: nn.ModuleDict) -> None:
        super().__init__(encoders)
        text = self.encoder("text")
        self.register_buffer("sentence_ends", torch.from_numpy(text.vocabulary.sentence_ends.copy()), persistent=False)
        self.head = nn.Sequential(nn.Linear(text.width, text.width), nn.Tanh(), nn.Linear(text.width, 1))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Rebuild ``tokens`` and ``token_mask`` as (B, L + 1) pairs.

        Adds ``segments`` (B, L + 1) and, of each row, ``nsp_follows`` (B,) bool, whether its B is its own, and
        ``nsp_valid`` (B,) bool, whether it takes part.
        """
        cuts = self.cut(batch["tokens"], batch["token_mask"], generator)
        partner = swap(cuts.valid, batch["group"], generator)
        vocabulary = self.encoder("text").vocabulary
        tokens, mask, segments = join(batch["tokens"], cuts, partner, vocabulary.sep, vocabulary.pad)
        own = partner == torch.arange(len(partner), device=partner.device)
        pairs = {"tokens": tokens, "token_mask": mask, "segments": segments}
        return {**batch, **pairs, "nsp_follows": own, "nsp_valid": cuts.valid}

    def cut(self, tokens: Tensor, mask: Tensor, generator: torch.Generator) -> Cuts:
        """Choose a sentence end within each text at random: neither the last word piece nor followed by nothing."""
        length = mask.sum(1)
        inner = torch.arange(tokens.shape[1], device=tokens.device) < (length - 2).unsqueeze(1)
        ends = self.sentence_ends[tokens] & mask & inner
        ends[:, :2] = False  # [CLS], and a sentence of nothing but its end
        position = uniform(tuple(tokens.shape), generator).masked_fill(~ends, -1).argmax(1)
        valid = ends.any(1)
        return Cuts(torch.where(valid, position, length - 2), length, valid)

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score each pair by its [CLS] token."""
        logits = self.head(encode("text").tokens[:, 0]).squeeze(1).float()
        follows, valid = batch["nsp_follows"], batch["nsp_valid"]
        loss = F.binary_cross_entropy_with_logits(logits, follows.to(logits.dtype), reduction="none")
        right = ((logits.detach() > 0) == follows).float()
        return {
            "loss": masked_mean(loss, valid),
            "accuracy": masked_mean(right, valid),
            "share": valid.float().mean(),
        }


class Cuts(NamedTuple):
    """Where texts are cut: ``end`` (B,) the last position of piece A; ``length`` (B,) of [CLS] … [SEP]; ``valid``."""

    end: Tensor
    length: Tensor
    valid: Tensor


def swap(valid: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """Whose second piece each row gets: (B,) row numbers.

    Half of the valid rows, each with chance 1/2, get that of the next valid row in a random order, unless it is the
    same product.

    Args:
        valid: (B,) bool, rows that have two pieces.
        group: (B,) product numbers.
        generator: Source of randomness.
    """
    rows = torch.arange(len(valid), device=valid.device)
    order = uniform((len(valid),), generator).masked_fill(~valid, 2.0).argsort()  # valid rows first, shuffled
    successor = order[(rows + 1) % valid.sum().clamp(min=1)]
    partner = torch.empty_like(rows).scatter_(0, order, successor)
    swapped = valid & (uniform((len(valid),), generator) < 0.5) & (group[partner] != group)
    return torch.where(swapped, partner, rows)


def join(tokens: Tensor, cuts: Cuts, partner: Tensor, sep: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Write ``[CLS] A [SEP] B [SEP]`` for valid rows and the text as it was for the others.

    Args:
        tokens: (B, L) texts, ``[CLS] … [SEP]`` and padding.
        cuts: Where they are cut.
        partner: (B,) whose second piece each row gets.
        sep: Id of [SEP].
        pad: Id of padding.

    Returns:
        (B, L + 1) ids, bool mask and segments.
    """
    rows, columns = tokens.shape
    position = torch.arange(columns + 1, device=tokens.device).expand(rows, -1)
    first = (cuts.end + 1).unsqueeze(1)  # where the first [SEP] goes
    start = (cuts.end + 1)[partner].unsqueeze(1)  # where the second piece begins in its own text
    last = (first + 1 + (cuts.length - 1)[partner].unsqueeze(1) - start).clamp(max=columns)  # where the last [SEP] goes
    last = torch.where(cuts.valid.unsqueeze(1), last, first)
    own = tokens.gather(1, position.clamp(max=columns - 1))
    other = tokens[partner].gather(1, (position - first - 1 + start).clamp(0, columns - 1))
    joined = torch.where(position < first, own, other)
    joined = joined.masked_fill((position == first) | (position == last), sep).masked_fill(position > last, pad)
    return joined, position <= last, ((position > first) & (position <= last)).long()
