"""How improbable a text is to a run's masked language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F

from catalign.data.ragged import Ragged
from catalign.data.text import clean
from catalign.objectives.mlm import MaskedLanguageModelling
from catalign.training.run import Run

PASSES = 3
_BATCH = 512


def language_model(run: Run) -> Callable[[Sequence[str]], np.ndarray] | None:
    """A function that says how improbable texts are, or None where no finished stage has the objective ``mlm``.

    It gives the mean negative log-probability of a text's tokens in nats, (n,), NaN for a text without any. In each of
    three passes every third token is hidden at a time and predicted from the others, so that the cost does not grow
    with the square of the length as when each token has a pass of its own (Salazar et al. 2020, "Masked language model
    scoring").
    """
    for stage in run.stages:
        for name, component in run.config.stages[stage].objectives.items():
            if component.name == "mlm":
                objective = cast(MaskedLanguageModelling, run.model(stage).tasks()[name])
                return partial(_surprise, objective, limit=run.catalogue().max_tokens)
    return None


@torch.inference_mode()
def _surprise(objective: MaskedLanguageModelling, texts: Sequence[str], *, limit: int) -> np.ndarray:
    vocabulary = objective.encoder("text").vocabulary
    encoded = vocabulary.encode(map(clean, texts), limit)
    ragged = Ragged.of([[vocabulary.cls, *ids, vocabulary.sep] for ids in encoded])
    order = np.argsort(ragged.lengths, kind="stable")  # batches of like length
    found = np.empty(len(texts))
    for start in range(0, len(texts), _BATCH):
        rows = order[start : start + _BATCH]
        padded, mask = map(torch.from_numpy, ragged.pad(rows, fill=vocabulary.pad))
        found[rows] = _batch(objective, padded.long(), mask).numpy()
    return found


def _batch(objective: MaskedLanguageModelling, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L) ids and which are no padding -> (B,) mean nats per ordinary token."""
    encoder = objective.encoder("text")
    ordinary = mask & ~objective.is_special[tokens]
    total = torch.zeros(len(tokens))
    for offset in range(PASSES):
        hidden = ordinary & (torch.arange(tokens.shape[1]) % PASSES == offset)
        batch = {"tokens": tokens.masked_fill(hidden, objective.mask_token), "token_mask": mask}
        logits = objective.logits(encoder(batch).tokens[hidden], encoder.embedding_weight)
        nats = F.cross_entropy(logits.float(), tokens[hidden], reduction="none")
        total.index_add_(0, hidden.nonzero()[:, 0], nats)
    return total / ordinary.sum(1)
