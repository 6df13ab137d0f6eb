"""Attribute prediction: what the products of a history are, from their vectors or from their context."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError, unknown
from catalign.objectives.base import Batch, Forward, Objective, full_precision, masked_mean, unit
from catalign.objectives.items import check_direction, hidden_items, hide
from catalign.registry import register


@register("objective", "attribute_prediction")
class AttributePrediction(Objective):
    """Tell a product's attributes from all others (Zhou et al. 2020, https://arxiv.org/abs/2008.07873, S3-Rec).

    When to use: to pretrain on histories where products have attributes. ``source: item`` is S3-Rec's associated
    attribute prediction, from the item vector; ``source: context`` its masked attribute prediction, from the state of a
    hidden product. Both maximise mutual information by InfoNCE: each of a product's attributes is a positive among all
    attributes there are. Put both into one stage under two keys; they share the masks of ``masked_item``.

    Args:
        encoders: Needs ``behaviour`` with ``causal: false``.
        source: ``item`` or ``context``.
        attributes: Attribute columns of the catalogue; all of them if empty.
        separator: What separates several values in one cell; null where a cell is one value.
        rate: Share of products hidden for ``context``, where no other task hides any.
        temperature: Divides cosines.

    Returns of ``forward``:
        ``loss`` in nats; ``accuracy``, share of products whose best-scored attribute is one of their own. Products
        without any attribute are left out.

    Raises:
        CatalignError: A causal encoder, an unknown column, or no attributes at all.
    """

    modalities = ("behaviour",)
    stream = "masked_history"
    corrupts = True
    values: Tensor

    def __init__(
        self,
        encoders: nn.ModuleDict,
        *,
        source: Literal["item", "context"] = "context",
        attributes: tuple[str, ...] = (),
        separator: str | None = None,
        rate: float = 0.3,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(encoders)
        encoder = self.encoder("behaviour")
        check_direction(encoder, "attribute_prediction", causal=False)
        self.source, self.rate, self.temperature = source, rate, temperature
        values, count = attribute_values(encoder.catalogue, attributes, separator)
        self.register_buffer("values", values, persistent=False)
        self.table = nn.Embedding(count, encoder.width)
        nn.init.normal_(self.table.weight, std=encoder.width**-0.5)
        self.head = nn.Linear(encoder.width, encoder.width, bias=False)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide products, if no other task has."""
        return hide(batch, self.rate, self.encoder("behaviour").mask_row, self.training, generator)

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Score all attributes."""
        encoder = self.encoder("behaviour")
        if self.source == "context":
            states, products = hidden_items(encode, batch)
        else:
            products = batch["items"][batch["history_mask"] | batch["last"]].unique()
            states = encoder.vectors(products)
        projected, own = self.head(states), self.values[products]
        valid = own >= 0
        with full_precision(states.device):
            logits = unit(projected) @ unit(self.table.weight).T / self.temperature
            log_p = logits.log_softmax(1).gather(1, own.clamp(min=0))
            per_product = -(log_p * valid).sum(1) / valid.sum(1).clamp(min=1)
            best = (logits.detach().argmax(1, keepdim=True) == own).any(1)
            has = valid.any(1)
            return {"loss": masked_mean(per_product, has), "accuracy": masked_mean(best.to(log_p.dtype), has)}


def attribute_values(catalogue: Catalogue, columns: tuple[str, ...], separator: str | None) -> tuple[Tensor, int]:
    """Numbers of every product's attribute values.

    Returns:
        (N, M) int64, padded with -1, and the number of different values of all columns together.

    Raises:
        CatalignError: An unknown column, or no product has a value.
    """
    for column in columns:
        if column not in catalogue.attributes:
            raise unknown("attribute in attribute_prediction.attributes", column, catalogue.attributes)
    number: dict[tuple[str, str], int] = {}
    products: list[list[int]] = [[] for _ in range(len(catalogue))]
    for column in columns or tuple(catalogue.attributes):
        for row, cell in enumerate(catalogue.attributes[column].tolist()):
            values = dict.fromkeys(cell.split(separator) if separator else [cell])
            products[row] += [number.setdefault((column, value), len(number)) for value in values if value]
    if not number:
        raise CatalignError(
            f"attribute_prediction: the products of {catalogue.name!r} have no attributes",
            "name columns that have values",
        )
    table = np.full((len(products), max(map(len, products))), -1, dtype=np.int64)
    for row, own in enumerate(products):
        table[row, : len(own)] = own
    return torch.from_numpy(table), len(number)
