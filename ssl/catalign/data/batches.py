"""The one function that reads a catalogue for a model, and a loader whose batches are functions of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from catalign.errors import CatalignError, unknown

if TYPE_CHECKING:
    from catalign.data.catalogue import Catalogue

Batch = dict[str, torch.Tensor]
"""Tensors by name; the keys are those of :func:`gather`."""

MODALITIES = ("text", "image")
SECOND = "second_"
"""What the keys of a product's second text start with."""

_FIELDS, _SECOND_FIELDS = 1, 2  # random streams that pick text fields, apart from the one that orders rows
Features = Mapping[str, torch.Tensor | np.ndarray]


def gather(
    catalogue: Catalogue,
    rows: np.ndarray,
    modalities: Sequence[str],
    fields_of_rows: np.ndarray | None = None,
    features: Features | None = None,
    *,
    second_fields_of_rows: np.ndarray | None = None,
) -> Batch:
    """Read some rows of a catalogue.

    Args:
        catalogue: A prepared catalogue.
        rows: (B,) row numbers.
        modalities: What to read: ``"image"``, ``"text"``. Nothing is read for the others.
        fields_of_rows: (B,) for each row the position of its text field in ``catalogue.fields``; the primary field
            (0) if None.
        features: Features by modality, (N, D) for all catalogue rows. A modality that has them gives
            ``<modality>_features`` instead of its raw input.
        second_fields_of_rows: (B,) the field of each row's second text; there is none if None.

    Returns:
        ``index (B,) int64`` and ``group (B,) int64`` always.
        ``image (B, 3, H, W) uint8``, channels last in memory, and ``has_image (B,) bool`` for images.
        ``tokens (B, L) int64`` as [CLS] … [SEP], padded to the longest row of the batch, ``token_mask (B, L) bool``
        and ``has_text (B,) bool`` for text; ``second_tokens``, ``second_token_mask``, ``has_second`` for second texts.
        ``<modality>_features (B, D)`` and ``has_<modality>`` where features were given.

    Raises:
        CatalignError: Unknown modality, or features that are not of this catalogue.
    """
    rows = np.asarray(rows, dtype=np.int64)
    batch = {"index": torch.from_numpy(rows), "group": torch.from_numpy(np.asarray(catalogue.groups)[rows])}
    for modality in modalities:
        if modality not in MODALITIES:
            raise unknown("modality", modality, MODALITIES)
        if features and modality in features:
            if len(features[modality]) != len(catalogue):
                problem = f"{len(features[modality])} {modality} features for a catalogue of {len(catalogue)} products"
                raise CatalignError(problem, "compute the features again on this catalogue")
            batch[f"{modality}_features"] = torch.as_tensor(features[modality][rows])
            batch[f"has_{modality}"] = torch.from_numpy(np.asarray(getattr(catalogue, f"has_{modality}"))[rows])
        elif modality == "image":
            batch |= _read_image(catalogue, rows)
        else:
            tokens, mask, there = _read_text(catalogue, rows, fields_of_rows)
            batch |= {"tokens": tokens, "token_mask": mask, "has_text": there}
    if second_fields_of_rows is not None:
        tokens, mask, there = _read_text(catalogue, rows, second_fields_of_rows)
        batch |= {f"{SECOND}tokens": tokens, f"{SECOND}token_mask": mask, "has_second": there}
    return batch


def _read_image(catalogue: Catalogue, rows: np.ndarray) -> Batch:
    # In the order of rows: sorting them first was slower, from a cold disk (36 against 30 ms) and from memory.
    pixels = torch.from_numpy(catalogue.images[rows])
    return {"image": pixels.permute(0, 3, 1, 2), "has_image": torch.from_numpy(np.asarray(catalogue.has_image)[rows])}


def _read_text(
    catalogue: Catalogue, rows: np.ndarray, fields_of_rows: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, their mask, and which rows have a text at all."""
    vocabulary = catalogue.vocabulary
    choice = np.zeros(len(rows), dtype=np.int64) if fields_of_rows is None else fields_of_rows
    lengths = _lengths(catalogue, rows)[np.arange(len(rows)), choice]
    inner = int(lengths.max(initial=0))
    tokens = np.full((len(rows), inner + 2), vocabulary.pad, dtype=np.int64)
    for position, field in enumerate(catalogue.fields):
        chosen = choice == position
        if chosen.any():
            tokens[chosen, 1:-1] = catalogue.tokens[field].pad(rows[chosen], inner, fill=vocabulary.pad)[0]
    tokens[:, 0] = vocabulary.cls
    tokens[np.arange(len(rows)), lengths + 1] = vocabulary.sep
    mask = np.arange(inner + 2) < lengths[:, None] + 2
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(lengths > 0)


def _lengths(catalogue: Catalogue, rows: np.ndarray) -> np.ndarray:
    """(B, F) tokens of every text field of some rows."""
    return np.stack([catalogue.tokens[field].lengths_of(rows) for field in catalogue.fields], axis=1)


class BatchLoader:
    """Batches of a catalogue's rows, each a pure function of (seed, step).

    An epoch is a permutation of the rows, seeded by (seed, epoch) and cut into global batches of ``world x
    batch_size`` rows; rows left over at its end wait for another epoch. A rank gets its own slice of each global
    batch, so w ranks of b rows see the same global batches as one rank of w x b rows. Which text field stands for a
    row is drawn by weight among the row's non-empty fields, seeded by (seed, step).

    Args:
        catalogue: A prepared catalogue.
        rows: Rows to draw from.
        modalities: As :func:`gather` takes.
        batch_size: Rows per batch and rank, B.
        steps: The step after the last one.
        seed: Seed of row order and text fields.
        start: The first step.
        fields: Sampling weight by text field, instead of the catalogue's.
        second_fields: Sampling weight by text field of a second text per row; no second text if None.
        rank: This process, 0 to world - 1.
        world: Number of processes.
        features: As :func:`gather` takes.
        shuffle: Permute rows; otherwise every epoch runs in the order of ``rows``.

    Raises:
        CatalignError: More rows in a global batch than there are, an unknown field, or no field of positive weight.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        rows: np.ndarray,
        modalities: Sequence[str],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        fields: Mapping[str, float] | None = None,
        second_fields: Mapping[str, float] | None = None,
        rank: int = 0,
        world: int = 1,
        features: Features | None = None,
        shuffle: bool = True,
    ) -> None:
        self.catalogue, self.rows = catalogue, np.asarray(rows, dtype=np.int64)
        self.modalities, self.features = tuple(modalities), features
        self.batch_size, self.steps, self.seed, self.start = batch_size, steps, seed, start
        self.rank, self.world, self.shuffle = rank, world, shuffle
        self.weights = _weights(catalogue, fields)
        self.second_weights = _weights(catalogue, second_fields) if second_fields else None
        self.batches_per_epoch = len(self.rows) // (batch_size * world)
        if not self.batches_per_epoch:
            devices = f" on each of {world} devices" if world > 1 else ""
            problem = f"a batch of {batch_size} rows{devices} needs more than the {len(self.rows)} rows there are"
            remedy = f"set trainer.batch_size to {len(self.rows) // world} or less, or use more rows (stage key split)"
            raise CatalignError(problem, remedy)
        self._first = self._next = start
        self._order: tuple[int, np.ndarray] = (-1, self.rows)

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whenever and in whatever order it is asked for."""
        return self._gather(self._rows_of(step), step)

    def _rows_of(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.batches_per_epoch)
        first = (position * self.world + self.rank) * self.batch_size
        return self._epoch(epoch)[first : first + self.batch_size]

    def _gather(self, rows: np.ndarray, step: int) -> Batch:
        first_text = second_text = None
        if "text" in self.modalities and "text" not in (self.features or {}):
            first_text = self._choose_fields(rows, self.weights, step, _FIELDS)
            if self.second_weights is not None:
                second_text = self._choose_fields(rows, self.second_weights, step, _SECOND_FIELDS)
        return gather(
            self.catalogue, rows, self.modalities, first_text, self.features, second_fields_of_rows=second_text
        )

    def _epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return self.rows
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.rows))
        return self._order[1]

    def _choose_fields(self, rows: np.ndarray, weights: np.ndarray, step: int, stream: int) -> np.ndarray:
        uniform = np.random.default_rng((self.seed, step, stream)).random(self.world * self.batch_size)
        uniform = uniform[self.rank * self.batch_size :][: self.batch_size]
        heaps = np.cumsum(weights * (_lengths(self.catalogue, rows) > 0), axis=1)
        choice = (uniform[:, None] * heaps[:, -1:] < heaps).argmax(axis=1)
        # Where every weighted field is empty the row has no text: a field of weight 0 must not stand in for it.
        return np.where(heaps[:, -1] > 0, choice, weights.argmax())

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``start``, or from where a loaded state says, to ``steps``."""
        first, self._first = self._first, self.start
        for step in range(first, self.steps):
            self._next = step + 1
            yield self.batch(step)

    def __len__(self) -> int:
        """Batches from ``start`` to ``steps``; a loaded state does not change it, as Lightning counts those done."""
        return max(self.steps - self.start, 0)

    def state_dict(self) -> dict[str, int]:
        """The step that comes next."""
        return {"step": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration begin at a saved step."""
        self._first = self._next = int(state["step"])


def _weights(catalogue: Catalogue, fields: Mapping[str, float] | None) -> np.ndarray:
    """(F,) sampling weights in the catalogue's field order."""
    given = catalogue.fields if fields is None else fields
    for field in given:
        if field not in catalogue.fields:
            raise unknown("text column", field, catalogue.fields)
    weights = np.array([given.get(field, 0.0) for field in catalogue.fields], dtype=np.float64)
    if weights.size == 0 or weights.min() < 0 or weights.sum() <= 0:
        raise CatalignError(f"text columns have no positive weight: {dict(given)}", "give one of them a weight above 0")
    return weights
