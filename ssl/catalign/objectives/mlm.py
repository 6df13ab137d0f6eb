"""Masked language modelling."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective, masked_mean, uniform
from catalign.registry import register


@register("objective", "mlm")
class MaskedLanguageModelling(Objective):
    """Predict hidden word pieces from their context (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    When to use: always, for a text encoder trained from scratch. Long descriptions bear a higher rate (Wettig et al.
    2023, https://arxiv.org/abs/2202.08005); of a short title at least one piece is hidden whatever the rate.

    In each row a share ``rate`` of the ordinary tokens is chosen; special tokens and padding never are. Of the chosen,
    80% become [MASK], 10% a random token, 10% stay, and all are predicted. The decoder is a transform and the encoder's
    own input embedding (tied), and makes logits at the chosen positions only: with a vocabulary of 30,000 a step takes
    a fifth of the time that all positions would.

    Args:
        encoders: Needs ``text``, with a ``vocabulary`` and ``embedding_weight``.
        rate: Share of tokens chosen; .15 to .30 is usual.
        whole_word: Choose words, not pieces, so that ``##ing`` is never guessed from its stem.

    Returns of ``forward``:
        ``loss``: cross-entropy in nats per chosen token (perplexity is its exponential). ``accuracy``: share guessed
        right. ``unigram_loss``: the cross-entropy at the same positions of a model that knows only how often each token
        occurs in the training split (add-one smoothing): the trivial baseline.

    Raises:
        CatalignError: The rate is not between 0 and 1.
    """

    modalities = ("text",)
    stream = "masked_text"
    corrupts = True
    unigram: Tensor
    is_special: Tensor
    ordinary: Tensor
    continuation: Tensor

    def __init__(self, encoders: nn.ModuleDict, *, rate: float = 0.15, whole_word: bool = False) -> None:
        super().__init__(encoders)
        if not 0 < rate < 1:
            raise CatalignError(f"mlm: rate {rate} is not between 0 and 1", "0.15 is usual")
        text = self.encoder("text")
        vocabulary = text.vocabulary
        self.rate, self.whole_word, self.mask_token = rate, whole_word, vocabulary.mask
        counts = torch.from_numpy(np.asarray(vocabulary.counts, dtype=np.float64)) + 1
        is_special = torch.zeros(vocabulary.size, dtype=torch.bool)
        is_special[vocabulary.specials] = True
        constants = {
            "unigram": (counts / counts.sum()).log().float(),
            "is_special": is_special,
            "ordinary": (~is_special).nonzero().squeeze(1),
            "continuation": torch.from_numpy(np.array(vocabulary.continuation, dtype=bool)),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.transform = nn.Sequential(nn.Linear(text.width, text.width), nn.GELU(), nn.LayerNorm(text.width))
        self.bias = nn.Parameter(torch.zeros(vocabulary.size))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide tokens. Adds ``mlm_chosen`` (B, L) bool and ``mlm_tokens`` (B, L), the tokens as they were."""
        tokens = batch["tokens"]
        chosen = self.choose(tokens, batch["token_mask"], generator)
        dice = uniform(tuple(tokens.shape), generator)
        draw = torch.randint(len(self.ordinary), tokens.shape, generator=generator, device=tokens.device)
        hidden = torch.where(dice < 0.8, self.mask_token, torch.where(dice < 0.9, self.ordinary[draw], tokens))
        return {**batch, "tokens": torch.where(chosen, hidden, tokens), "mlm_chosen": chosen, "mlm_tokens": tokens}

    def choose(self, tokens: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Which tokens are predicted: (B, L) ids and (B, L) bool -> (B, L) bool.

        Each row's number of ordinary tokens times the rate is rounded up or down at random, so that its mean is exact,
        but is at least one. Tokens (or words) are taken in random order until that many are chosen.
        """
        candidate = mask & ~self.is_special[tokens]
        quota = candidate.sum(1, keepdim=True) * self.rate
        quota = torch.floor(quota + uniform(tuple(quota.shape), generator)).clamp(min=1)
        # The position where each token's word starts; a token is its own word unless whole words are hidden.
        position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        origin = position
        if self.whole_word:
            goes_on = candidate & self.continuation[tokens]
            goes_on[:, 1:] &= candidate[:, :-1]
            origin = torch.where(goes_on, 0, position).cummax(1).values
        # Tokens of one word share a random number, so that they stand together in the order.
        order = uniform(tuple(tokens.shape), generator).gather(1, origin).masked_fill(~candidate, torch.inf)
        rank = order.argsort(dim=1, stable=True).argsort(dim=1)
        return candidate & (rank.gather(1, origin) < quota)

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score the hidden tokens."""
        chosen = batch["mlm_chosen"]
        targets = batch["mlm_tokens"][chosen]
        logits = self.logits(encode("text").tokens[chosen], self.encoder("text").embedding_weight)
        every = torch.ones_like(targets, dtype=torch.bool)
        return {
            "loss": masked_mean(F.cross_entropy(logits, targets, reduction="none"), every),
            "accuracy": masked_mean((logits.detach().argmax(-1) == targets).float(), every),
            "unigram_loss": masked_mean(-self.unigram[targets], every),
        }

    def logits(self, features: Tensor, embedding: Tensor) -> Tensor:
        """(M, D) features of hidden tokens and the (V, D) embedding -> (M, V)."""
        return F.linear(self.transform(features), embedding, self.bias)
