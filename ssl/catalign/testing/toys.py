"""A vocabulary, a catalogue, encoders and batches small enough that an objective's step takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import nn

from catalign.config import Component
from catalign.data.batches import Batch
from catalign.data.interactions import Histories
from catalign.data.store import EmbeddingStore
from catalign.data.text import Vocabulary
from catalign.embeddings.fusion.weighted import Weighted
from catalign.encoders import build_encoders
from catalign.evaluation.base import Context

SIZE = (32, 24)
ENCODERS: dict[str, dict[str, Any]] = {
    "text": {"name": "bert", "layers": 1, "width": 32, "heads": 2},
    "behaviour": {"name": "sequence", "width": 32, "layers": 1, "heads": 2, "dropout": 0.0, "max_length": 6},
}
IMAGES: dict[str, dict[str, Any]] = {
    "vit": {
        "name": "timm",
        "model": "vit_tiny_patch16_224",
        "size": SIZE,
        "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 2},
    },
    "conv": {"name": "timm", "model": "resnet10t", "size": SIZE, "kwargs": {"channels": (16, 16, 32, 32)}},
}


@dataclass
class ToyCatalogue:
    """What encoders, objectives and protocols ask of a catalogue, in memory."""

    titles: list[str]
    splits: np.ndarray
    groups: np.ndarray
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    has_image: np.ndarray | None = None
    has_text: np.ndarray | None = None
    histories: Histories | None = None
    vocabulary: Vocabulary | None = None
    name: str = "toy"
    fingerprint: str = "toy"

    def __post_init__(self) -> None:
        count = len(self.titles)
        self.ids = [f"p{row}" for row in range(count)]
        self.fields = {"title": 1.0}
        self.images = np.random.default_rng(0).integers(0, 256, (count, 16, 12, 3), dtype=np.uint8)
        self.has_image = np.ones(count, bool) if self.has_image is None else self.has_image
        self.has_text = np.ones(count, bool) if self.has_text is None else self.has_text

    def __len__(self) -> int:
        return len(self.titles)

    def text(self, name: str) -> list[str]:
        """The texts of a column; there is one."""
        return self.titles

    def rows(self, *splits: str, **_: Any) -> np.ndarray:
        """The rows of some splits, all of them."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def having(self, attribute: str, values: list[str]) -> np.ndarray:
        """Which rows have one of an attribute's values."""
        return np.isin(self.attributes[attribute], values)


def toy_vocabulary() -> Vocabulary:
    """46 word pieces: the special ones, a full stop, 30 words and 10 endings."""
    words = [f"word{n}" for n in range(30)] + [f"##s{n}" for n in range(10)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    vocabulary = Vocabulary(tokenizer, pad=0, unk=1, cls=2, sep=3, mask=4)
    vocabulary.counts[5:] = torch.arange(len(pieces) - 5).numpy()
    return vocabulary


def toy_catalogue(products: int = 12) -> Any:
    """Products in three colours, half of them in train, and the histories of five users."""
    rows = [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [8, 9, 10, 0], [1, 3, 5, 7, 9, 2], [2, 4, 6, 8, 10]]
    times = [[3600 * 24 * (place + 1) ** 2 for place in range(len(row))] for row in rows]
    number = np.arange(products)
    return ToyCatalogue(
        titles=[f"word{n % 3} word{n % 7} word{n % 30}" for n in number],
        splits=np.array(["train", "val", "train", "test"])[number % 4],
        groups=number,
        attributes={
            "colour": np.array(["red", "green", "blue"], dtype=object)[number % 3],
            "tags": np.array(["", "a", "a b"], dtype=object)[number % 3],
        },
        histories=Histories.of([(f"user{n}", row) for n, row in enumerate(rows)], times),
        vocabulary=toy_vocabulary(),
    )


def toy_encoders(image: str = "vit", options: Mapping[str, Mapping[str, Any]] | None = None) -> nn.ModuleDict:
    """Text, image and behaviour encoders.

    Args:
        image: ``vit`` or ``conv``.
        options: Options that differ, by modality, such as ``{"behaviour": {"causal": False}}``.
    """
    chosen = {"text": ENCODERS["text"], "image": IMAGES[image], "behaviour": ENCODERS["behaviour"]}
    components = {name: Component(**{**given, **(options or {}).get(name, {})}) for name, given in chosen.items()}
    return build_encoders(components, toy_catalogue())


def toy_batch(rows: int = 8, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Batch:
    """Random products: texts of 4 to 14 tokens, most of two sentences; smooth random images; histories."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 17, (rows, 1), generator=generator)
    position = torch.arange(16)
    tokens = torch.randint(6, 46, (rows, 16), generator=generator)
    tokens[:, 3] = 5
    tokens = tokens.masked_fill(position == 0, 2).masked_fill(position == lengths - 1, 3)
    tokens = tokens.masked_fill(position >= lengths, 0)
    coarse = torch.rand((rows, 3, 5, 4), generator=generator)
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    histories = torch.randint(0, 10, (rows, 7), generator=generator)
    lengths_of_histories = torch.randint(3, 8, (rows, 1), generator=generator)
    return {
        "image": (images * 255).to(torch.uint8),
        "tokens": tokens,
        "token_mask": position < lengths,
        "group": torch.arange(rows),
        "index": torch.arange(rows),
        "has_image": torch.ones(rows, dtype=torch.bool),
        "has_text": torch.ones(rows, dtype=torch.bool),
        "history": histories,
        "history_mask": torch.arange(7) < lengths_of_histories,
        "history_time": torch.cumsum(histories * 3600, 1),
        "has_behaviour": torch.ones(rows, dtype=torch.bool),
    }


def toy_context(folder: Path, products: int = 120) -> Context:
    """What a protocol reads: a toy catalogue, random embeddings that know its colours, and untrained ones.

    Args:
        folder: Where the embeddings are stored.
        products: How many there are.
    """
    catalogue = toy_catalogue(products)
    draw = np.random.default_rng(0)
    colours = np.unique(catalogue.attributes["colour"], return_inverse=True)[1]

    def vectors(colour: float) -> np.ndarray:
        drawn = draw.normal(size=(products, 8)).astype(np.float32)
        drawn[np.arange(products), colours] += colour
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    names = ("image", "text", "image_features", "text_features")
    stores = [
        EmbeddingStore.write(folder / made, catalogue.ids, {name: vectors(colour) for name in names})
        for made, colour in (("embeddings", 3.0), ("untrained", 0.0))
    ]
    fusion = Weighted(weights={"image": 0.5, "text": 0.5}).fit({name: stores[0][name] for name in ("image", "text")})
    return Context(catalogue=catalogue, store=stores[0], untrained=stores[1], fusion=fusion)
