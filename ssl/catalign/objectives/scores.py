"""Scores of rows against candidates, some of which are positives: losses and accuracy, over all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from catalign.objectives.base import gather, masked_mean

Score = Callable[[Tensor, "Matches", Tensor], Tensor]
Matches = tuple[Tensor, Tensor]
"""(B, W) bool positives and (B, W) bool candidates of this rank's rows among all ranks' rows."""


def two_way(
    first: Tensor, second: Tensor, scale: Tensor | float, *, key: Tensor, valid: Tensor, score: Score | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of rows that look for their positives among another view's rows, the mean of both directions.

    Args:
        first: (B, D) one view of this rank's rows, of length 1.
        second: (B, D) the other.
        scale: Cosines are multiplied by it.
        key: (B,) rows with the same key are positives.
        valid: (B,) bool, rows that have both views.
        score: The loss of one direction; :func:`infonce` if None.
    """
    match = matches(key, valid)
    directions = [first @ gather(second).T * scale, second @ gather(first).T * scale]
    losses = torch.stack([(score or infonce)(logits, match, valid) for logits in directions])
    accuracies = torch.stack([top1(logits, match, valid) for logits in directions])
    return losses.mean(), accuracies.mean()


def matches(key: Tensor, valid: Tensor) -> Matches:
    """Which candidates count for which rows.

    Args:
        key: (B,) rows with the same key are positives.
        valid: (B,) bool, rows that have both modalities.
    """
    candidates = gather(valid.int()).bool().expand(len(key), -1)
    return (key[:, None] == gather(key)) & candidates, candidates


def infonce(logits: Tensor, match: Matches, valid: Tensor) -> Tensor:
    """Mean over rows and their positives of -log p(positive | row).

    Args:
        logits: (B, W) this rank's rows against all ranks'.
        match: From :func:`matches`.
        valid: (B,) rows that count.
    """
    positive, candidate = match
    logits = logits.masked_fill(~candidate, torch.finfo(logits.dtype).min)
    log_p = F.log_softmax(logits, dim=1)
    per_row = -torch.where(positive, log_p, 0).sum(1) / positive.sum(1).clamp(min=1)
    return masked_mean(per_row, valid)


def sigmoid(logits: Tensor, match: Matches, valid: Tensor) -> Tensor:
    """Mean over rows of the sum over candidates of -log σ(±logit); arguments as :func:`infonce`."""
    positive, candidate = match
    per_pair = F.softplus(torch.where(positive, -logits, logits))
    return masked_mean(torch.where(candidate, per_pair, 0).sum(1), valid)


def top1(logits: Tensor, match: Matches, valid: Tensor) -> Tensor:
    """Share of valid rows whose best candidate is a positive; arguments as :func:`infonce`."""
    positive, candidate = match
    best = logits.detach().masked_fill(~candidate, -torch.inf).argmax(1, keepdim=True)
    return masked_mean(positive.gather(1, best).squeeze(1).to(logits.dtype), valid)
