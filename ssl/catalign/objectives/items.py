"""What the tasks on behaviour share: cutting and hiding histories, and scoring states against products."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, full_precision, masked_mean, mean_count, uniform, unit

Loss = Literal["softmax", "sampled", "bce"]


class ItemScores(nn.Module):
    """Losses of predicting products by the cosine of a state and an item vector over a temperature.

    Candidates are the products that training histories hold. A product that none of them holds is nobody's negative, or
    its content would be learned to be unwanted.

    Args:
        encoder: A :class:`~catalign.encoders.sequence.SequenceEncoder`.
        loss: ``softmax`` over all candidates; ``sampled``, over the target and ``negatives`` of them drawn uniformly
            for the whole batch; ``bce``, a yes-or-no question about the target and one about a drawn product, as SASRec
            and S3-Rec ask.
        negatives: See ``sampled``.
        temperature: Divides cosines.
    """

    rows: Tensor
    place: Tensor

    def __init__(self, encoder: Any, loss: Loss, negatives: int, temperature: float) -> None:
        super().__init__()
        self.loss, self.negatives, self.temperature = loss, negatives, temperature
        rows = encoder.trained.nonzero().squeeze(1)
        if not len(rows):
            raise CatalignError(
                f"no training history of catalogue {encoder.catalogue.name!r} holds a product",
                "give longer histories, or hold fewer events out (data.interactions.split)",
            )
        place = torch.zeros(len(encoder.trained), dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def draw(self, positions: int, generator: torch.Generator) -> Tensor:
        """Product rows that :meth:`forward` uses as negatives: none, ``(negatives,)`` or ``(positions,)``."""
        count = {"softmax": 0, "sampled": self.negatives, "bce": positions}[self.loss]
        drawn = torch.randint(len(self.rows), (count,), generator=generator, device=generator.device)
        return self.rows[drawn]

    def forward(self, encoder: Any, states: Tensor, targets: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """Score P states.

        Args:
            encoder: The encoder that the states come from.
            states: (P, D).
            targets: (P,) product rows.
            drawn: From :meth:`draw`; (P,) of it for ``bce``.

        Returns:
            ``loss``, the mean over states and ranks; in evaluation and with ``softmax`` also ``hit@10``, the share of
            states with the target among the ten best of all candidates, and ``share``, that of states whose target can
            be scored: others count in neither.
        """
        known = encoder.trained[targets]  # a held-out target may be new: nothing to score it by
        outputs = {}
        with full_precision(states.device):
            states = unit(states) / self.temperature
            if self.loss == "softmax" or not self.training:
                table = unit(encoder.vectors(self.rows))
                total, better = FullSoftmax.apply(states, table, self.place[targets], known)
                outputs["loss"] = total / mean_count(known)
                outputs["hit@10"] = masked_mean((better < 10).to(states.dtype), known)
                outputs["share"] = known.to(states.dtype).mean()
            if self.loss != "softmax":
                outputs["loss"] = masked_mean(self._against_drawn(encoder, states, targets, drawn), known)
        return outputs

    def _against_drawn(self, encoder: Any, states: Tensor, targets: Tensor, drawn: Tensor) -> Tensor:
        positive = (states * unit(encoder.vectors(targets))).sum(1)
        negative = unit(encoder.vectors(drawn))
        if self.loss == "bce":
            return F.softplus(-positive) + F.softplus((states * negative).sum(1))
        others = (states @ negative.T).masked_fill(drawn == targets.unsqueeze(1), -torch.inf)
        return torch.cat([positive.unsqueeze(1), others], 1).logsumexp(1) - positive


class FullSoftmax(torch.autograd.Function):
    """Cross-entropy over a large table, whose logits exist for a few rows at a time.

    As in Liger (Hsu et al. 2024, https://arxiv.org/abs/2410.10989), gradients are made along with the loss. With
    12,000 products and 1,750 positions on one core this took .26 s where all logits at once took .67 s, half of it for
    the memory.
    """

    ELEMENTS = 2**22

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the losses of some rows.

        Args:
            ctx: Autograd's.
            states: (P, D).
            table: (N, D).
            targets: (P,) rows of the table.
            counts: (P,) bool, the states whose losses are summed.

        Returns:
            The sum, and (P,) how many other rows score as high as each target or higher.
        """
        learns = any(ctx.needs_input_grad)
        gradients = torch.zeros_like(states), torch.zeros_like(table)
        total, better = states.new_zeros(()), torch.empty_like(targets)
        step = max(1, FullSoftmax.ELEMENTS // len(table))
        for start in range(0, len(states), step):
            part = slice(start, start + step)
            logits = states[part] @ table.T
            own, weight = logits.gather(1, targets[part, None]), counts[part, None].to(states.dtype)
            better[part] = (logits >= own).sum(1) - 1
            norm = logits.logsumexp(1, keepdim=True)
            total += ((norm - own) * weight).sum()
            if learns:
                slope = logits.sub_(norm).exp_().mul_(weight).scatter_add_(1, targets[part, None], -weight)
                gradients[0][part] = slope @ table
                gradients[1].addmm_(slope.T, states[part])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(better)
        return total, better

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what :meth:`forward` made."""
        states, table = ctx.saved_tensors
        return slopes[0] * states, slopes[0] * table, None, None


def check_direction(encoder: Any, task: str, *, causal: bool) -> None:
    """Check that a behaviour encoder looks the way that a task needs.

    Raises:
        CatalignError: It does not.
    """
    if encoder.causal != causal:
        fault = "a bidirectional encoder sees the answer" if causal else "a causal encoder sees one side only"
        raise CatalignError(f"{task}: {fault}", f"encoder.behaviour.causal={str(causal).lower()}")


def shift(batch: Batch, training: bool) -> Batch:
    """Let every product of a history be predicted from those before it; in evaluation the last one alone.

    Sets ``history`` and ``history_mask`` to the (B, T - 1) inputs; adds ``next`` (B, T - 1), the product that follows
    each, ``next_mask``, which of them to predict, and ``next_gap`` in seconds where times are known. A batch that
    another task has shifted stays as it is.
    """
    if "next" in batch:
        return batch
    history, mask = batch["history"], batch["history_mask"]
    following = mask[:, 1:]
    if not training:
        following = following & ~F.pad(mask[:, 2:], (0, 1))
    shifted = {"history": history[:, :-1], "history_mask": mask[:, 1:], "next": history[:, 1:], "next_mask": following}
    if "history_time" in batch:
        shifted["next_gap"] = batch["history_time"].diff(dim=1)
    return {**batch, **shifted}


def hide(batch: Batch, rate: float, mask_row: int, training: bool, generator: torch.Generator) -> Batch:
    """Cut the last product off each history of two or more and, in training, hide a share of the others.

    Sets hidden positions of ``history`` to ``mask_row`` and ``history_mask`` to what is left; adds ``hidden`` (B, T)
    bool, ``items`` (B, T), the products as they were, and ``last`` (B, T) bool, the one that was cut off. A batch in
    which another task has hidden products stays as it is.
    """
    if "hidden" in batch:
        return batch
    history, mask = batch["history"], batch["history_mask"]
    last = mask & ~F.pad(mask[:, 1:], (0, 1)) & (mask.sum(1, keepdim=True) > 1)
    hidden = torch.zeros_like(mask)
    if training:
        hidden = mask & ~last & (uniform(tuple(mask.shape), generator) < rate)
    left = {"history": history.masked_fill(hidden, mask_row), "history_mask": mask & ~last}
    return {**batch, **left, "hidden": hidden, "items": history, "last": last}


def hidden_items(encode: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
    """What a bidirectional encoder says of the products that :func:`hide` took away: (P, D) states and (P,) rows.

    The state of a cut-off product is the output at the mask token after the end, which also stands for a history when
    products are recommended.
    """
    encoded, last = encode("behaviour"), batch["last"]
    hidden = batch["hidden"][:, : encoded.tokens.shape[1]]  # a longest history has one more, the product cut off
    states = torch.cat([encoded.tokens[hidden], encoded.pooled[last.any(1)]])
    return states, torch.cat([batch["items"][batch["hidden"]], batch["items"][last]])
