"""Pooled encoder outputs of a whole catalogue, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from catalign.data.batches import gather
from catalign.data.catalogue import Catalogue
from catalign.encoders.base import Encoder
from catalign.encoders.sequence import SequenceEncoder


@torch.inference_mode()
def pooled_features(
    encoder: Encoder, catalogue: Catalogue, modality: str, batch_size: int = 512, *, field: str | None = None
) -> Iterator[Tensor]:
    """Yield the encoder's pooled output ``(B, D)`` for consecutive rows of the catalogue, on the CPU in fp32.

    Of a behaviour encoder it is the item vectors.

    Args:
        encoder: A trained or untrained encoder; it is put into evaluation mode.
        catalogue: The products.
        modality: Which of their sides to read.
        batch_size: Products per batch.
        field: The text column to read; the primary one by default.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    position = list(catalogue.fields).index(field) if field else 0
    for start in range(0, len(catalogue), batch_size):
        rows = np.arange(start, min(start + batch_size, len(catalogue)))
        if isinstance(encoder, SequenceEncoder):
            yield encoder.vectors(torch.from_numpy(rows).to(device)).float().cpu()
            continue
        batch = gather(catalogue, rows, (modality,), np.full(len(rows), position))
        yield encoder({key: value.to(device) for key, value in batch.items()}).pooled.float().cpu()
