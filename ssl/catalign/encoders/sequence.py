"""Behaviour encoders: a transformer over the products that a user bought or viewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalign.data.catalogue import Catalogue
from catalign.data.interactions import TRAIN
from catalign.data.store import FEATURES, EmbeddingStore
from catalign.encoders.base import Encoded, Encoder, by_length
from catalign.errors import CatalignError
from catalign.registry import register


@register("encoder", "sequence")
class SequenceEncoder(Encoder):
    """A transformer over histories (Kang & McAuley 2018, https://arxiv.org/abs/1808.09781, SASRec).

    Reads ``history`` (B, T), product rows with the oldest first, and ``history_mask`` (B, T). Each product enters as
    its *item vector*: a learned vector of its id, a projection of what is known of its content, or their sum. Ids that
    no training history holds have learned nothing and are left out of the sum: a new product is its content alone.

    With ``causal`` every position sees what came before it, and ``pooled`` is the last position (SASRec). Without, all
    positions see each other, and ``pooled`` is the output at a mask token after the end (Sun et al. 2019,
    https://arxiv.org/abs/1904.06690, BERT4Rec). Item vectors are shared by inputs and outputs.

    Args:
        catalogue: Its products are the items.
        items: ``ids``, ``content`` or ``both``.
        content: An embedding store of the catalogue's products, such as a run's ``embeddings`` folder, which is read
            when the encoder is built and must stay where it is. Null for what the latest stage that this one starts
            from says of their texts and photos; the weights then hold it. Content is never trained.
        content_name: The vectors of the store, such as ``text`` or ``text_features``.
        content_width: Width of the content where it comes from a stage.
        layers: Transformer blocks.
        width: Width D of the features; feed-forward layers are four times as wide.
        heads: Attention heads; D must be a multiple.
        dropout: Share of activations and attention weights dropped.
        id_dropout: With ``both``: share of the products whose id vector is left out of a training step, so that content
            learns to stand alone.
        causal: See above.
        max_length: Products read of one history; the latest ones.
        buckets: See :func:`~catalign.encoders.base.by_length`.

    Attributes:
        catalogue: As given.
        mask_row: The row that stands for a hidden product: the number of products.
        trained: (N,) bool, which products training histories hold.
        wants_content: Whether :meth:`describe` must be called before training.

    Raises:
        CatalignError: Heads do not divide the width, the catalogue has no histories, or the content is missing or of
            another catalogue.
    """

    modality = "behaviour"
    keys = ("history", "history_mask")
    trained: Tensor
    described: Tensor
    features: Tensor

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        items: Literal["ids", "content", "both"] = "ids",
        content: str | None = None,
        content_name: str = f"text{FEATURES}",
        content_width: int = 256,
        layers: int = 2,
        width: int = 64,
        heads: int = 2,
        dropout: float = 0.2,
        id_dropout: float = 0.0,
        causal: bool = True,
        max_length: int = 50,
        buckets: int = 8,
    ) -> None:
        super().__init__()
        if width % heads:
            raise CatalignError(f"config key encoder.behaviour: width {width} is not a multiple of heads {heads}")
        if catalogue.histories is None:
            raise CatalignError(
                f"catalogue {catalogue.name!r} has no histories", "name a log of behaviour: data.interactions.path=FILE"
            )
        self.catalogue, self.items, self.width, self.mask_row = catalogue, items, width, len(catalogue)
        self.causal, self.max_length, self.buckets, self.id_dropout = causal, max_length, buckets, id_dropout
        trained = torch.zeros(len(catalogue), dtype=torch.bool)
        trained[torch.from_numpy(catalogue.histories.part(TRAIN).values.astype(np.int64))] = True
        self.register_buffer("trained", trained, persistent=False)
        self.wants_content = items != "ids" and content is None
        if items != "ids":
            features, described = torch.zeros(len(catalogue), content_width), torch.zeros_like(trained)
            if content is not None:
                features, described = standardised(*stored_content(catalogue, content, content_name))
            self.register_buffer("features", features, persistent=content is None)
            self.register_buffer("described", described, persistent=content is None)
            self.project = nn.Linear(features.shape[1], width)
        learned = 0 if items == "content" else len(catalogue)
        self.ids = nn.Embedding(learned + 1, width)  # the last one stands for a hidden product
        self.positions = nn.Embedding(max_length + 1, width)
        for table in (self.ids, self.positions):
            nn.init.normal_(table.weight, std=0.02)  # of length 1 from the start, rare products never leave their place
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def of(cls, catalogue: Catalogue, **options: Any) -> Self:
        """An encoder of what a catalogue's users did."""
        return cls(catalogue, **options)

    @property
    def known(self) -> Tensor:
        """(N,) bool, which products have an item vector that is not arbitrary."""
        if self.items == "ids":
            return self.trained
        return self.described if self.items == "content" else self.described | self.trained

    def describe(self, vectors: np.ndarray, present: np.ndarray) -> None:
        """Take the content of all products: (N, C), and (N,) bool, which have any.

        Raises:
            CatalignError: C is not ``content_width``.
        """
        self.check_content(vectors.shape[1])
        self.features, self.described = standardised(vectors, present)

    def check_content(self, width: int) -> None:
        """Check that content of some width fits.

        Raises:
            CatalignError: It is not ``content_width``.
        """
        if width != self.features.shape[1]:
            raise CatalignError(
                f"products have content of width {width}, but the encoder expects {self.features.shape[1]}",
                f"set encoder.behaviour.content_width={width}",
            )

    def vectors(self, rows: Tensor) -> Tensor:
        """Item vectors of products: row numbers of any shape (…), ``mask_row`` among them -> (…, D)."""
        if self.items == "ids":
            return self.ids(rows)
        hidden = rows == self.mask_row
        described = self.project(self.features[rows.clamp(max=self.mask_row - 1)])
        if self.items == "content":
            return torch.where(hidden.unsqueeze(-1), self.ids.weight[0].to(described.dtype), described)
        counts = torch.cat([self.trained, self.trained.new_ones(1)])  # the mask token is learned
        if self.training and self.id_dropout:
            kept = torch.rand(len(counts), device=counts.device) >= self.id_dropout
            kept[-1] = True
            counts = counts & kept
        learned = self.ids(rows) * counts[rows].unsqueeze(-1)
        return learned + described.masked_fill(hidden.unsqueeze(-1), 0)

    def forward(self, batch: Mapping[str, Tensor]) -> Encoded:
        """Encode ``history``; rows longer than ``max_length`` are cut to their latest products."""
        history, mask = self._latest(batch["history"], batch["history_mask"])
        if not self.causal:
            lengths = mask.sum(1, keepdim=True)
            history = F.pad(history, (0, 1)).scatter(1, lengths, self.mask_row)
            mask = F.pad(mask, (0, 1)).scatter(1, lengths, True)

        def encode(rows: Tensor, length: int) -> Tensor:
            return self._encode(history[rows, :length], mask[rows, :length])

        tokens = by_length(mask, self.buckets, encode)
        last = mask.sum(1).clamp(min=1) - 1
        pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        if not self.causal:
            tokens, mask = tokens[:, :-1], mask.scatter(1, last.unsqueeze(1), False)[:, :-1]
        return Encoded(tokens=tokens, pooled=pooled, mask=mask)

    def _latest(self, history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if history.shape[1] <= self.max_length:
            return history, mask
        lengths = mask.sum(1, keepdim=True)
        places = torch.arange(self.max_length, device=history.device)
        places = places + (lengths - self.max_length).clamp(min=0)
        return history.gather(1, places), places < lengths

    def _encode(self, history: Tensor, mask: Tensor) -> Tensor:
        # Scores read the direction of an item vector, so the blocks do too. At its own length, .2 or so, it would drown
        # in what they add to it.
        items = F.normalize(self.vectors(history), dim=-1) * self.width**0.5
        hidden = self.dropout(items + self.positions.weight[: history.shape[1]])
        if self.causal:  # padding comes last, so no real position can see any
            future = nn.Transformer.generate_square_subsequent_mask(history.shape[1], hidden.device, hidden.dtype)
            return self.blocks(hidden, mask=future, is_causal=True)
        return self.blocks(hidden, src_key_padding_mask=~mask)


def standardised(vectors: np.ndarray, present: np.ndarray) -> tuple[Tensor, Tensor]:
    """Content (N, C) with mean 0 and spread 1 over the products that have it, 0 for the others, and (N,) which have."""
    mean, spread = vectors[present].mean(axis=0), vectors[present].std(axis=0)
    scaled = np.where(present[:, None], (vectors - mean) / np.maximum(spread, 1e-6), 0)
    return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(np.array(present))


def stored_content(catalogue: Catalogue, path: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What an embedding store says of a catalogue's products: (N, C), and (N,) bool, which have a vector.

    Raises:
        CatalignError: The store lacks the vectors or a product.
    """
    store = EmbeddingStore.open(path)
    row_of = {identity: row for row, identity in enumerate(store.ids)}
    if missing := [identity for identity in catalogue.ids if identity not in row_of]:
        raise CatalignError(
            f"encoder.behaviour.content: {path} lacks {len(missing)} products, such as {missing[0]!r}",
            "embed this catalogue: catalign embed RUN",
        )
    rows = np.array([row_of[identity] for identity in catalogue.ids])
    return np.asarray(store[name])[rows], store.present(name)[rows]
