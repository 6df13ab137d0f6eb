"""What every encoder is: a module that reads its modality's keys of a batch and returns features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from catalign.config import Component
from catalign.data.text import Vocabulary
from catalign.errors import CatalignError
from catalign.registry import build


@dataclass(frozen=True)
class Encoded:
    """Features of one batch.

    Attributes:
        tokens: (B, N, D) features of each token, patch or cell.
        pooled: (B, D) one vector per row.
        mask: (B, N) bool, true at real tokens; None when all are.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None


class Encoder(nn.Module):
    """Base of all encoders. A subclass takes the catalogue's vocabulary, then its options as keyword-only parameters.

    Attributes:
        modality: The kind of data it reads; also its key in ``config.encoder``.
        keys: The batch keys it reads, so that a batch can be encoded in chunks of rows.
        width: D, the width of the features.
    """

    modality: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    width: int

    def forward(self, batch: Mapping[str, Tensor]) -> Encoded:
        """Encode the rows of a batch."""
        raise NotImplementedError


def build_encoders(components: Mapping[str, Component], vocabulary: Vocabulary) -> nn.ModuleDict:
    """Build the encoders of a config.

    Args:
        components: Modality -> encoder, as ``config.encoder`` holds them.
        vocabulary: The catalogue's vocabulary.

    Raises:
        CatalignError: An unknown encoder or option, or an encoder under another modality's key.
    """
    encoders = nn.ModuleDict()
    for modality, component in components.items():
        encoder = build("encoder", component.name, vocabulary, where=f"encoder.{modality}", **component.options)
        if encoder.modality != modality:
            raise CatalignError(
                f"config key encoder.{modality}: {component.name!r} encodes {encoder.modality}, not {modality}",
                f"put it under encoder.{encoder.modality}",
            )
        encoders[modality] = encoder
    return encoders
