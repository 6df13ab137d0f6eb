"""What every encoder is: a module that reads its modality's keys of a batch and returns features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign import registry
from catalign.config import Component
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError


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
    """Base of all encoders. A subclass takes its options as keyword-only parameters, and in :meth:`of` a catalogue.

    Attributes:
        modality: The kind of data it reads; also its key in ``config.encoder``.
        keys: The batch keys it reads, so that a batch can be encoded in chunks of rows.
        width: D, the width of the features.
    """

    modality: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    width: int

    @classmethod
    def of(cls, catalogue: Catalogue, **options: Any) -> Self:
        """An encoder of a catalogue's products; a subclass that must know something of them says what."""
        return cls(**options)

    def forward(self, batch: Mapping[str, Tensor]) -> Encoded:
        """Encode the rows of a batch."""
        raise NotImplementedError


def by_length(mask: Tensor, buckets: int, encode: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Encode rows in groups of like length, each cut to its own longest row: one long row costs the others nothing.

    Args:
        mask: (B, L) bool, true at real tokens, which come first.
        buckets: Number of groups, at most; 1 for compiled encoders.
        encode: From row numbers (b,) and a length l to features (b, l, D).

    Returns:
        (B, L, D) in the order of ``mask``, zero beyond a group's length.
    """
    longest = mask.shape[1]
    ends = (mask * torch.arange(1, longest + 1, device=mask.device)).amax(1)
    order = ends.argsort(stable=True)
    parts = []
    for rows in order.tensor_split(max(1, min(buckets, len(order) // 8))):
        length = int(ends[rows[-1]])
        parts.append(F.pad(encode(rows, length), (0, 0, 0, longest - length)))
    return torch.cat(parts)[order.argsort()]


def build_encoders(components: Mapping[str, Component], catalogue: Catalogue) -> nn.ModuleDict:
    """Build the encoders of a config.

    Args:
        components: Modality -> encoder, as ``config.encoder`` holds them.
        catalogue: The products they are for.

    Raises:
        CatalignError: An unknown encoder or option, or an encoder under another modality's key.
    """
    encoders = nn.ModuleDict()
    for modality, component in components.items():
        kind: type[Encoder] = registry.get("encoder", component.name)
        options = registry.validate("encoder", component.name, component.options, f"encoder.{modality}")
        if kind.modality != modality:
            raise CatalignError(
                f"config key encoder.{modality}: {component.name!r} encodes {kind.modality}, not {modality}",
                f"put it under encoder.{kind.modality}",
            )
        encoders[modality] = kind.of(catalogue, **options)
    return encoders
