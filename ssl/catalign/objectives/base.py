"""The contract of a pretext task, and how the tasks of a stage share forward passes.

A pretext task is a function of a batch. *Prepare* makes views, pairs and masks for the whole batch at once, on its
device, from a generator; *forward* turns encoded features into a loss and metrics. Tasks that name the same ``stream``
see the same prepared batch and share one forward pass of each encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, cast

import torch
import torch.distributed
import torch.nn.functional as F
from lightly.utils import dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from catalign.data.batches import Batch
from catalign.encoders.base import Encoded, Encoder
from catalign.errors import unknown


class Objective(nn.Module):
    """Base of all pretext tasks. A subclass takes ``encoders``, then its options as keyword-only parameters.

    Args:
        encoders: Modality -> encoder. They belong to the stage: an objective uses them but does not own their weights.

    Attributes:
        modalities: Encoders that it needs.
        stream: Objectives of one stream share the prepared batch and the forward pass.
        corrupts: Whether its ``prepare`` destroys information, and so comes after those that don't.
        scores_items: Whether it compares histories with item vectors, which then stand for products in a store.

    Raises:
        CatalignError: An encoder that it needs is missing.
    """

    modalities: tuple[str, ...] = ()
    stream: ClassVar[str]
    corrupts: ClassVar[bool] = False
    scores_items: ClassVar[bool] = False
    encoders: nn.ModuleDict

    def __init__(self, encoders: nn.ModuleDict) -> None:
        super().__init__()
        object.__setattr__(self, "encoders", encoders)  # not a submodule, or weights would be saved once per objective
        for modality in self.modalities:
            if modality not in encoders:
                raise unknown(f"encoder (needed by {type(self).__name__})", modality, encoders)

    def encoder(self, modality: str) -> Any:
        """The encoder of a modality."""
        return self.encoders[modality]

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make the task's input.

        Args:
            batch: Tensors of B rows, never changed in place.
            generator: The only source of randomness, on the batch's device.

        Returns:
            A new dict that the encoders and :meth:`forward` read.
        """
        return batch

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            encode: Call it with a modality to get its features.
            batch: What the stream's objectives prepared.

        Returns:
            ``loss``, a scalar to minimise, and named scalar metrics that carry no gradient.
        """
        raise NotImplementedError

    def embed(self, modality: str, pooled: Tensor) -> Tensor:
        """What an embedding store holds of an encoder's pooled output: (B, D) -> (B, D')."""
        return pooled


class Forward:
    """One forward pass of each encoder over one prepared batch, made when first asked for and then remembered.

    With ``chunks > 1`` rows are encoded in that many chunks under activation checkpointing: the backward pass encodes
    each chunk again, so one chunk's activations exist at a time, while losses see all rows. This is GradCache (Gao et
    al. 2021, https://arxiv.org/abs/2101.06983) left to autograd: gradients equal those of the one-shot batch, also of
    parameters outside the encoders such as a temperature. Batch normalisation sees the statistics of a chunk.

    Args:
        encoders: Modality -> encoder.
        batch: The prepared batch. Where it has ``<modality>_features`` (B, D), they are the pooled output.
        chunks: Number of chunks.
    """

    def __init__(self, encoders: nn.ModuleDict, batch: Mapping[str, Tensor], chunks: int = 1) -> None:
        self.encoders, self.batch, self.chunks = encoders, batch, chunks
        self._encoded: dict[tuple[str, str], Encoded] = {}

    def __call__(self, modality: str, prefix: str = "") -> Encoded:
        """Features of a modality; ``prefix``, such as ``second_``, is how the keys of another input of its start."""
        if (modality, prefix) not in self._encoded:
            self._encoded[modality, prefix] = self._encode(modality, prefix)
        return self._encoded[modality, prefix]

    def _encode(self, modality: str, prefix: str) -> Encoded:
        features = self.batch.get(f"{prefix}{modality}_features")
        if features is not None:
            return Encoded(tokens=features.unsqueeze(1), pooled=features)
        encoder = cast(Encoder, self.encoders[modality])
        inputs = {key: self.batch[prefix + key] for key in encoder.keys if prefix + key in self.batch}
        if self.chunks == 1:
            return encoder(inputs)
        parts = [self._encode_chunk(encoder, chunk) for chunk in split(inputs, self.chunks)]
        masks = [part.mask for part in parts if part.mask is not None]
        return Encoded(
            tokens=torch.cat([part.tokens for part in parts]),
            pooled=torch.cat([part.pooled for part in parts]),
            mask=torch.cat(masks) if masks else None,
        )

    @staticmethod
    def _encode_chunk(encoder: Encoder, inputs: Batch) -> Encoded:
        if not torch.is_grad_enabled():
            return encoder(inputs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), frozen_statistics(encoder)

        return checkpoint(encoder, inputs, use_reentrant=False, context_fn=contexts)


def split(batch: Mapping[str, Tensor], chunks: int) -> list[Batch]:
    """Cut the rows of a batch into at most ``chunks`` parts of nearly equal size."""
    parts = {key: value.tensor_split(min(chunks, len(value))) for key, value in batch.items()}
    return [dict(zip(parts, values)) for values in zip(*parts.values())]


@contextmanager
def frozen_statistics(module: nn.Module) -> Any:
    """Within it, running statistics stay as they are: encoding a chunk again must not count twice."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def run_objectives(
    objectives: Mapping[str, Objective],
    encoders: nn.ModuleDict,
    batch: Batch,
    generator: torch.Generator,
    chunks: int = 1,
) -> dict[str, dict[str, Tensor]]:
    """Prepare, encode and score one batch for every objective of a stage.

    Args:
        objectives: Name -> objective.
        encoders: Modality -> encoder.
        batch: Raw tensors of B rows on the device.
        generator: Source of all randomness, on the same device.
        chunks: See :class:`Forward`.

    Returns:
        Name -> what the objective's ``forward`` returned.
    """
    streams: dict[str, list[str]] = {}
    for name, objective in objectives.items():
        streams.setdefault(objective.stream, []).append(name)
    outputs: dict[str, dict[str, Tensor]] = {}
    for members in streams.values():
        prepared = batch
        with torch.no_grad(), full_precision(generator.device):
            for name in sorted(members, key=lambda name: objectives[name].corrupts):
                prepared = objectives[name].prepare(prepared, generator)
        encode = Forward(encoders, prepared, chunks)
        for name in members:
            outputs[name] = objectives[name](encode, prepared)
    return {name: outputs[name] for name in objectives}


def full_precision(device: torch.device | str) -> torch.autocast:
    """Within it, autocast is off: for geometry, colours, and logits that a high temperature magnifies."""
    return torch.autocast(torch.device(device).type, enabled=False)


def unit(features: Tensor) -> Tensor:
    """(B, D) vectors scaled to length 1, at least in fp32."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def gather(tensor: Tensor) -> Tensor:
    """Rows of all ranks, (B, …) -> (world * B, …), in rank order and with gradient to each rank's own."""
    if dist.world_size() == 1:
        return tensor
    if tensor.is_floating_point():
        return torch.cat(cast(tuple[Tensor, ...], dist.gather(tensor.contiguous())))
    parts = [torch.empty_like(tensor) for _ in range(dist.world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where ``mask`` holds, counted over all ranks; 0 where it holds nowhere.

    Ranks that hold different numbers of values would otherwise weigh them differently: distributed training averages
    gradients over ranks, so each rank divides its sum by the mean count of a rank.

    Args:
        values: Any shape, of this rank.
        mask: The same shape, bool.
    """
    total = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()
    return total / mean_count(mask).to(values.dtype)


def mean_count(mask: Tensor) -> Tensor:
    """How often ``mask`` holds on a rank, the mean over ranks; 1 where it holds nowhere."""
    count = mask.sum().float()
    if dist.world_size() > 1:
        torch.distributed.all_reduce(count)
        count = count / dist.world_size()
    return torch.where(count > 0, count, 1)


def present(batch: Mapping[str, Tensor], modality: str) -> Tensor:
    """(B,) bool: which rows of a batch have a modality."""
    mask = batch.get(f"has_{modality}")
    return torch.ones_like(batch["group"], dtype=torch.bool) if mask is None else mask


def uniform(shape: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random numbers in [low, high) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low
