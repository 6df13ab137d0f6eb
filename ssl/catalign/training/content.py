"""What a behaviour encoder is told of the products: their content, as an earlier stage embeds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from catalign.config import Config
from catalign.data.catalogue import Catalogue
from catalign.data.history_batches import BEHAVIOUR
from catalign.encoders.base import Encoder
from catalign.encoders.sequence import SequenceEncoder
from catalign.errors import CatalignError
from catalign.objectives.base import unit
from catalign.training.features import pooled_features
from catalign.training.model import Model, build_model, modalities_of, parents_of


def check_content(config: Config, stage: str, catalogue: Catalogue) -> None:
    """Check before any training that a behaviour encoder will get content, and of its width.

    Raises:
        CatalignError: It will not.
    """
    if BEHAVIOUR in modalities_of(config, stage):
        model, *parents = (build_model(config, name, catalogue) for name in (stage, *parents_of(config, stage)))
        if (encoder := _in_want(model)) is not None:
            source, (modality, *_) = _source(stage, encoder, parents)
            pooled = torch.zeros(1, cast(Encoder, source.encoders[modality]).width)
            encoder.check_content(source.embed(modality, pooled).shape[1])


def describe_items(
    stage: str, model: Model, parents: Sequence[Model], catalogue: Catalogue, device: str = "cpu"
) -> None:
    """Tell a behaviour encoder what the latest parent that embeds texts or photos says of the products.

    Their content is the mean of the aligned vectors that a product has, each of length 1.

    Args:
        stage: The name of the model's stage.
        model: Nothing happens to one whose items need no content.
        parents: The models of the stages it starts from, in their order.
        catalogue: The products.
        device: Where to embed them.
    """
    if (encoder := _in_want(model)) is None:
        return
    source, content = _source(stage, encoder, parents)
    has = np.stack([getattr(catalogue, f"has_{modality}") for modality in content])
    vectors = np.stack([_embedded(source, catalogue, modality, device) for modality in content])
    encoder.describe(np.einsum("mn,mnc->nc", has / has.sum(0).clip(min=1), vectors), np.any(has, axis=0))


def _in_want(model: Model) -> SequenceEncoder | None:
    encoder = dict(model.encoders).get(BEHAVIOUR)
    return encoder if isinstance(encoder, SequenceEncoder) and encoder.wants_content else None


def _source(stage: str, encoder: SequenceEncoder, parents: Sequence[Model]) -> tuple[Model, list[str]]:
    """The latest parent that embeds texts or photos, and which of them."""
    for parent in reversed(parents):
        if content := [modality for modality in parent.encoders if modality != BEHAVIOUR]:
            return parent, content
    raise CatalignError(
        f"stages.{stage}: encoder.behaviour.items={encoder.items} needs content, but no stage before it has any",
        f"let stages.{stage}.init name a stage of text or image, or set encoder.behaviour.content=RUN/embeddings",
    )


@torch.inference_mode()
def _embedded(model: Model, catalogue: Catalogue, modality: str, device: str) -> np.ndarray:
    pooled = pooled_features(cast(Encoder, model.encoders[modality]).to(device), catalogue, modality)
    return torch.cat([unit(model.embed(modality, part)) for part in pooled]).numpy()
