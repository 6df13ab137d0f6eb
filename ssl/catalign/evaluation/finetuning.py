"""Whole encoders trained to tell the values of one attribute: the ceiling beside classifiers of frozen features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from catalign.config import TrainerConfig
from catalign.data.batches import Batch, gather
from catalign.data.catalogue import Catalogue
from catalign.encoders.base import Encoder
from catalign.encoders.image import ImageEncoder
from catalign.objectives.views import MILD, augment
from catalign.training.model import Model
from catalign.training.optim import build_optimizer, build_scheduler

TRAINING = TrainerConfig(epochs=4, batch_size=128, lr=5e-4, weight_decay=0.05, warmup=0.1, final_lr=0.0)
RECORD = {
    "loss": "softmax, the mean over inputs",
    "trainer": TRAINING.model_dump(
        mode="json", include={"epochs", "batch_size", "lr", "weight_decay", "betas", "warmup", "final_lr", "clip"}
    ),
    "views": MILD.model_dump(mode="json"),
    "epoch_chosen_on": "val accuracy, the mean over inputs",
}
"""What a protocol says of it."""

Answers = dict[str, tuple[np.ndarray, np.ndarray]]
"""By input: probabilities (n, C), and which products have the input, (n,) bool."""


class Products(NamedTuple):
    """Some products of a catalogue.

    Attributes:
        rows: (n,) their rows, for the photos.
        texts: n texts to be read instead of the catalogue's own.
        labels: (n,) class numbers; those of train are 0 or more.
    """

    rows: np.ndarray
    texts: list[str]
    labels: np.ndarray


class Labeller(nn.Module):
    """Encoders, each with a linear layer to the classes; what is known of a product adds up.

    Args:
        encoders: By modality; they are trained in place.
        classes: C.
    """

    def __init__(self, encoders: Mapping[str, Encoder], classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.width, classes) for name, encoder in encoders.items()})

    def forward(self, batch: Batch, inputs: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits (B, C) by input, and which rows have it, (B,) bool; ``fused`` is the sum over modalities."""
        has = {name: batch[f"has_{name}"] for name in self.encoders}
        logits = {
            name: self.heads[name](encoder(batch).pooled).float() * has[name][:, None]
            for name, encoder in self.encoders.items()
        }
        logits["fused"], has["fused"] = torch.stack([*logits.values()]).sum(0), torch.stack([*has.values()]).any(0)
        return {name: (logits[name], has[name]) for name in inputs}


def finetune(
    model: Model,
    catalogue: Catalogue,
    products: Mapping[str, Products],
    classes: int,
    inputs: Sequence[str],
    *,
    seed: int = 0,
    precision: str = "32",
    title: str = "fine-tuning",
) -> dict[str, Answers]:
    """Train a copy of a model's encoders on the train products, and answer for those of val and test.

    One model learns all inputs at once, as a shop would use it: from the text, from the photo, and from both, whose
    logits are the sum. The weights of the epoch whose answers on val are best are kept.

    Args:
        model: Its encoders are where training starts; it stays as it is.
        catalogue: The products' catalogue.
        products: Those of ``train``, ``val`` and ``test``; val and test may be empty.
        classes: C.
        inputs: Of ``text``, ``image`` and ``fused``; which they are changes what is learned.
        seed: Draws the heads, the order, the views and the dropout.
        precision: ``32`` or ``bf16``.
        title: What the progress bar says.

    Returns:
        The answers for val and for test.
    """
    modalities = [name for name in ("text", "image") if name in inputs or "fused" in inputs]
    readers = {split: _Reader(catalogue, some, modalities) for split, some in products.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoders = {name: copy.deepcopy(cast(Encoder, model.encoders[name])) for name in modalities}
        labeller = Labeller(encoders, classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner = _Learner(labeller, inputs, readers["train"], seed, precision)
        best, kept = -1.0, labeller.state_dict()
        for epoch in track(range(int(TRAINING.epochs)), title, transient=True):
            learner.learn(epoch)
            told = learner.answer(readers["val"], classes).values()
            right = [has & (answer.argmax(1) == products["val"].labels) for answer, has in told]
            if (accuracy := float(np.mean(right)) if len(products["val"].labels) else 0.0) >= best:
                best, kept = accuracy, copy.deepcopy(labeller.state_dict())
        labeller.load_state_dict(kept)
    return {split: learner.answer(readers[split], classes) for split in ("val", "test")}


class _Reader:
    """Batches of products: their photos, and the texts that are given instead of their own."""

    def __init__(self, catalogue: Catalogue, products: Products, modalities: Sequence[str]) -> None:
        self.catalogue, self.products, self.modalities = catalogue, products, modalities
        if "text" in modalities:
            self.texts, self.known = catalogue.vocabulary.framed(products.texts, catalogue.max_tokens)

    def __len__(self) -> int:
        return len(self.products.rows)

    def batch(self, chosen: np.ndarray) -> Batch:
        batch = gather(self.catalogue, self.products.rows[chosen], [name for name in self.modalities if name != "text"])
        if "text" in self.modalities:
            tokens, mask = self.texts.pad(chosen, fill=self.catalogue.vocabulary.pad)
            batch |= {"tokens": torch.from_numpy(tokens), "token_mask": torch.from_numpy(mask)}
            batch["has_text"] = torch.from_numpy(self.known[chosen])
        return batch | {"label": torch.from_numpy(self.products.labels[chosen])}


class _Learner:
    """The steps of one training."""

    def __init__(self, labeller: Labeller, inputs: Sequence[str], reader: _Reader, seed: int, precision: str) -> None:
        self.labeller, self.inputs, self.reader, self.seed = labeller, inputs, reader, seed
        self.device = next(labeller.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.optimiser = build_optimizer(labeller, TRAINING)
        self.steps = -(-len(reader) // TRAINING.batch_size)
        self.schedule = build_scheduler(self.optimiser, TRAINING, int(TRAINING.epochs) * self.steps)

    def learn(self, epoch: int) -> None:
        """One pass over the products."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.reader))
        self.labeller.train()
        for batch in self._batches(self.reader, np.array_split(order, self.steps)):
            if "image" in batch:
                image = cast(ImageEncoder, self.labeller.encoders["image"])
                batch["image"] = image.normalise(augment(batch["image"], image.size, MILD, self.generator))
            with self.autocast:
                found = self.labeller(batch, self.inputs).values()
            losses = [F.cross_entropy(logits[has], batch["label"][has]) for logits, has in found if has.any()]
            if not losses:
                continue  # nothing is known of any product in the batch
            torch.stack(losses).mean().backward()
            nn.utils.clip_grad_norm_(self.labeller.parameters(), TRAINING.clip or math.inf)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.schedule.step()

    @torch.inference_mode()
    def answer(self, reader: _Reader, classes: int) -> Answers:
        """Probabilities of all products."""
        self.labeller.eval()
        found = {name: [(torch.zeros(0, classes), torch.zeros(0, dtype=torch.bool))] for name in self.inputs}
        parts = np.array_split(np.arange(len(reader)), -(-len(reader) // 512)) if len(reader) else []
        for batch in self._batches(reader, parts):
            with self.autocast:
                for name, (logits, has) in self.labeller(batch, self.inputs).items():
                    found[name].append((logits.softmax(1).cpu(), has.cpu()))
        return {
            name: (torch.cat([logits for logits, _ in parts]).numpy(), torch.cat([has for _, has in parts]).numpy())
            for name, parts in found.items()
        }

    def _batches(self, reader: _Reader, parts: Sequence[np.ndarray]) -> Iterator[Batch]:
        for chosen in parts:
            yield {key: value.to(self.device) for key, value in reader.batch(chosen).items()}
