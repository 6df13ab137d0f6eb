"""Batches of histories: a row is a user, and where content is read too, the product that came next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from catalign.data.batches import Batch, BatchLoader
from catalign.data.interactions import TRAIN, VAL
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError

if TYPE_CHECKING:
    from catalign.data.catalogue import Catalogue

BEHAVIOUR = "behaviour"
_TARGETS = 3  # the random stream that picks the next product, apart from those of batches.py


def pad_histories(rows: Sequence[np.ndarray], longest: int) -> Batch:
    """Histories as tensors, cut to their latest products.

    Args:
        rows: B arrays of product rows, oldest first, none of them empty.
        longest: Products kept of one history.

    Returns:
        ``history`` (B, T) int64 and ``history_mask`` (B, T) bool, products first.
    """
    latest = Ragged.of(np.asarray(row)[-longest:] for row in rows)
    history, mask = latest.pad(np.arange(len(latest)))
    return {"history": torch.from_numpy(history), "history_mask": torch.from_numpy(mask)}


class HistoryLoader(BatchLoader):
    """As :class:`~catalign.data.batches.BatchLoader`, over users.

    With ``behaviour`` alone a row is a whole history: ``history`` (B, T), ``history_mask`` (B, T), ``has_behaviour``
    (B,), ``history_time`` (B, T) int64 seconds where times are known, and ``index`` and ``group`` (B,), the user. With
    other modalities too, one of the user's events is drawn: ``history`` is what came before it, and everything else,
    ``index`` and ``group`` included, is of its product.

    Args:
        catalogue: A prepared catalogue with histories.
        rows: Products that may be drawn as next ones; with ``behaviour`` alone they have no say.
        modalities: As above.
        held_out: Predict the events labelled val from what came before them, and nothing else.
        longest: Products kept of one history, the next one not counted.
        **options: As ``BatchLoader`` takes.

    Raises:
        CatalignError: No user has a history to learn from.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        rows: np.ndarray,
        modalities: Sequence[str],
        *,
        held_out: bool,
        longest: int,
        **options: Any,
    ) -> None:
        assert catalogue.histories is not None
        histories, self.longest = catalogue.histories, longest
        labels = (TRAIN, VAL) if held_out else (TRAIN,)
        self.items = histories.part(*labels)
        seen = np.isin(histories.splits.values, labels)
        self.times = None
        if histories.times is not None:
            self.times = Ragged(histories.times.values[seen], self.items.offsets)
        self.content = tuple(name for name in modalities if name != BEHAVIOUR)
        self.ends = self._ends(histories.splits.values[seen] == VAL if held_out else None, rows)
        users = np.flatnonzero(self.ends.lengths)
        if not len(users):
            what = "an event labelled val after another one" if held_out else "two events to learn from"
            raise CatalignError(
                f"no user of catalogue {catalogue.name!r} has {what}",
                "choose another data.interactions.split, or give a longer log",
            )
        super().__init__(catalogue, users, self.content, **options)

    def _ends(self, wanted: np.ndarray | None, rows: np.ndarray) -> Ragged:
        """Per user, the positions of events that may come next: not the first, and with content of one of ``rows``."""
        first = np.repeat(self.items.offsets[:-1], self.items.lengths)
        position = np.arange(len(first)) - first
        allowed = position > 0 if wanted is None else (position > 0) & wanted
        if self.content:
            allowed &= np.isin(self.items.values, rows)
        return Ragged(position[allowed].astype(np.int32), self.items.offsets_of(allowed))

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whenever and in whatever order it is asked for."""
        users = self._rows_of(step)
        if not self.content:
            last = self.ends.values[self.ends.offsets[users + 1] - 1]  # training events may follow one labelled val
            own = {"index": torch.from_numpy(users), "group": torch.from_numpy(users)}
            return {**self._read(users, last, whole=True), **own}
        draw = np.random.default_rng((self.seed, step, _TARGETS)).random(self.world * self.batch_size)
        draw = draw[self.rank * self.batch_size :][: self.batch_size]
        chosen = self.ends.offsets[users] + (draw * self.ends.lengths_of(users)).astype(np.int64)
        ends = self.ends.values[chosen]
        return {
            **self._gather(self.items.values[self.items.offsets[users] + ends], step),
            **self._read(users, ends, whole=False),
        }

    def _read(self, users: np.ndarray, ends: np.ndarray, *, whole: bool) -> Batch:
        """Histories of users up to the event at ``ends``, with it (``whole``) or without."""
        stops = self.items.offsets[users] + ends + whole
        starts = np.maximum(self.items.offsets[users], stops - self.longest - whole)
        history, mask = self.items.slices(starts, stops).pad(np.arange(len(users)))
        batch = {
            "history": torch.from_numpy(history),
            "history_mask": torch.from_numpy(mask),
            "has_behaviour": torch.ones(len(users), dtype=torch.bool),
        }
        if self.times is not None:
            batch["history_time"] = torch.from_numpy(self.times.slices(starts, stops).pad(np.arange(len(users)))[0])
        return batch
