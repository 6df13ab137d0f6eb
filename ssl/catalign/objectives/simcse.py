"""SimCSE: a text is near itself under another dropout, and far from other texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from catalign.data.batches import SECOND
from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective, full_precision, present, unit
from catalign.objectives.scores import two_way
from catalign.registry import register


@register("objective", "simcse")
class SimCSE(Objective):
    """Tell texts apart, with dropout as the only noise (Gao et al. 2021, https://arxiv.org/abs/2104.08821).

    When to use: to make the vectors of a pretrained text encoder comparable, where texts are so short that hiding words
    (``text_views``) would make other products of them. Beside ``mlm`` or after it.

    Each text is encoded twice and must find itself among the texts of the batch (InfoNCE, in both directions; rows of
    one group are positives of each other). What differs between the two is the encoder's own dropout, so it must have
    some: ``stages.NAME.encoder.text.dropout=0.1``, as in the paper. It drops in evaluation too: without it there is no
    task.

    Args:
        encoders: Needs ``text`` with ``dropout`` above 0.
        temperature: Divides cosines.

    Returns of ``forward``:
        ``loss`` in nats; ``accuracy``, share of texts that find themselves, or one of their group, first.

    Raises:
        CatalignError: The text encoder has no dropout.
    """

    modalities = ("text",)
    stream = "simcse"

    def __init__(self, encoders: nn.ModuleDict, *, temperature: float = 0.05) -> None:
        super().__init__(encoders)
        text = self.encoder("text")
        if not any(isinstance(module, nn.Dropout) and module.p > 0 for module in text.modules()):
            raise CatalignError(
                "simcse: the text encoder drops nothing, so both encodings of a text are the same",
                "give it dropout: stages.NAME.encoder.text.dropout=0.1 (or encoder.text.dropout=0.1, for all stages)",
            )
        self.temperature = temperature
        self.head = nn.Sequential(nn.Linear(text.width, text.width), nn.Tanh())

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The text again as the second text."""
        again = {SECOND + key: batch[key] for key in ("tokens", "token_mask")}
        return {**batch, **again, "has_text": present(batch, "text")}

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Encode the texts twice and score them."""
        with dropping(self.encoder("text")):
            first, second = (unit(self.head(encode("text", prefix).pooled)) for prefix in ("", SECOND))
        with full_precision(first.device):
            key, valid = batch["group"], batch["has_text"]
            loss, accuracy = two_way(first, second, 1 / self.temperature, key=key, valid=valid)
        return {"loss": loss, "accuracy": accuracy}


@contextmanager
def dropping(module: nn.Module) -> Iterator[None]:
    """Within it, a module drops as in training."""
    before = module.training
    module.train()
    try:
        yield
    finally:
        module.train(before)
