"""A catalogue of coloured squares and a model that knows colours by heart, for tests of what stands on a model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from catalign.config import ColumnsConfig, DataConfig
from catalign.data.catalogue import Catalogue
from catalign.encoders.base import Encoded

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (30, 30, 230)}
KINDS = ("shoe", "bag", "hat", "sock")
NO_PHOTO, NO_TEXT = "p5", "p10"


def photo(colour: str, number: int = 0) -> bytes:
    """A PNG of one colour; the number makes it unlike others."""
    pixels = np.full((24, 16, 3), COLOURS[colour], dtype=np.uint8)
    pixels[:2, : 1 + number % 16] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_catalogue(folder: Path, count: int = 60) -> Catalogue:
    """Product ``p<i>``; its colour turns every row and its kind every third row. One has no photo, one no text."""
    colours = [list(COLOURS)[i % 3] for i in range(count)]
    kinds = [KINDS[i // 3 % 4] for i in range(count)]
    ids = [f"p{i}" for i in range(count)]
    table = {
        "id": ids,
        "image": [
            {"bytes": None if id == NO_PHOTO else photo(colour, i), "path": None}
            for i, (id, colour) in enumerate(zip(ids, colours))
        ],
        "title": ["" if id == NO_TEXT else f"{c} {k} <{id}>" for id, c, k in zip(ids, colours, kinds)],
        "colour": [colour.title() for colour in colours],
        "kind": ["" if i == 0 else kind for i, kind in enumerate(kinds)],
    }
    pq.write_table(pa.table(table), folder / "toys.parquet")
    return Catalogue.load(make_config(folder), progress=False)


def make_config(folder: Path) -> DataConfig:
    """What :func:`make_catalogue` prepares ``toys.parquet`` of a folder by."""
    return DataConfig(
        name="toys",
        source={"name": "parquet", "path": str(folder / "toys.parquet")},
        columns=ColumnsConfig(attributes=["colour", "kind"]),
        image_size=(24, 16),
        vocabulary_size=200,
        max_bad_share=0.2,
        workers=1,
        cache=str(folder / "cache"),
    )


class Words(nn.Module):
    modality, width = "text", 7

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        table = torch.zeros(catalogue.vocabulary.size, 7)
        for place, word in enumerate([*COLOURS, *KINDS]):
            (ids,) = catalogue.vocabulary.encode([word])
            table[ids[0], place] = 1 if place < 3 else 0.3
        self.table = nn.Embedding.from_pretrained(table + 1e-3)

    def forward(self, batch: dict[str, Tensor]) -> Encoded:
        tokens = self.table(batch["tokens"]) * batch["token_mask"][..., None]
        return Encoded(tokens, tokens.sum(1), batch["token_mask"])


class Colours(nn.Module):
    modality, width = "image", 7

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, Tensor]) -> Encoded:
        means = batch["image"].float().mean((2, 3)) / 255 * self.scale
        pooled = torch.cat([means, torch.full((len(means), 4), 1e-2)], dim=1)
        return Encoded(pooled[:, None], pooled)


class ToyModel(nn.Module):
    """Stands for a trained, aligned model."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"text": Words(catalogue), "image": Colours()})

    def embed(self, modality: str, pooled: Tensor) -> Tensor:
        return 3 * pooled

    def describes_products(self, modality: str) -> bool:
        return True
