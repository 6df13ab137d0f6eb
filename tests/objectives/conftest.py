"""A vocabulary, encoders and batches small enough that an objective's step takes milliseconds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from catalign.config import Component
from catalign.data.interactions import Histories
from catalign.data.text import Vocabulary
from catalign.encoders import build_encoders

SIZE = (32, 24)
TEXT = Component(name="bert", layers=1, width=32, heads=2)
IMAGES = {
    "vit": Component(
        name="timm",
        model="vit_tiny_patch16_224",
        size=SIZE,
        kwargs={"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 2},
    ),
    "conv": Component(name="timm", model="resnet10t", size=SIZE, kwargs={"channels": (16, 16, 32, 32)}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make_vocabulary():
    words = [f"word{n}" for n in range(30)] + [f"##s{n}" for n in range(10)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    vocabulary = Vocabulary(tokenizer, pad=0, unk=1, cls=2, sep=3, mask=4)
    vocabulary.counts[5:] = torch.arange(len(pieces) - 5).numpy()
    return vocabulary


@pytest.fixture
def vocabulary():
    return make_vocabulary()


class Toy(SimpleNamespace):
    """What encoders and objectives ask of a catalogue: 12 products in three colours, five users with times."""

    def __len__(self):
        return 12


def make_catalogue():
    rows = [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [8, 9, 10, 0], [1, 3, 5, 7, 9, 2], [2, 4, 6, 8, 10]]
    times = [[3600 * 24 * (place + 1) ** 2 for place in range(len(row))] for row in rows]
    return Toy(
        name="toy",
        vocabulary=make_vocabulary(),
        histories=Histories.of([(f"user{number}", row) for number, row in enumerate(rows)], times),
        attributes={
            "colour": np.array(["red", "green", "blue"] * 4, dtype=object),
            "tags": np.array(["", "a", "a b"] * 4, dtype=object),
        },
    )


def make_encoders(image="vit", **behaviour):
    behaviour = Component(name="sequence", width=32, layers=1, heads=2, dropout=0.0, max_length=8, **behaviour)
    return build_encoders({"text": TEXT, "image": IMAGES[image], "behaviour": behaviour}, make_catalogue())


@pytest.fixture
def catalogue():
    return make_catalogue()


@pytest.fixture
def encoders():
    return make_encoders()


@pytest.fixture
def encoders_of():
    return make_encoders


def make_batch(rows=8, seed=0, size=(40, 30)):
    """Random products: texts of 4 to 14 tokens, most of two sentences; smooth random images."""
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


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture
def batch_of():
    return make_batch


@pytest.fixture
def seeded():
    return lambda seed=0: torch.Generator().manual_seed(seed)
