"""User histories: who bought or viewed which products, in which order, and which events are held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from catalign.artifacts import read_json, write_json
from catalign.config import InteractionsConfig
from catalign.data.holdout import LEFT_OUT, TEST, TRAIN, VAL, label, leave_one_out
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError, unknown

LABELS = {"train": TRAIN, "val": VAL, "test": TEST, "left_out": LEFT_OUT}

_USERS, _ITEMS, _TIMES, _SPLITS = "users.json", "histories", "history_times", "history_splits"


@dataclass(frozen=True, eq=False)
class Cases:
    """Questions to a recommender: after these events, which product comes next?

    Attributes:
        users: (C,) int64 rows of ``Histories.users``.
        contexts: C rows of products, oldest first, none of them empty.
        targets: (C,) int64 products that came next.
    """

    users: np.ndarray
    contexts: Ragged
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Histories:
    """What each user bought or viewed, oldest first.

    Attributes:
        users: U user ids.
        items: U rows of product row numbers, int32.
        splits: The same shape as ``items``, uint8 labels ``TRAIN``, ``VAL``, ``TEST`` or ``LEFT_OUT``.
        times: The same shape, in seconds since 1970; None where they are not known.

    Raises:
        CatalignError: They do not fit together.
    """

    users: list[str]
    items: Ragged
    splits: Ragged
    times: Ragged | None = None

    def __post_init__(self) -> None:
        if len(self.users) != len(self.items):
            raise CatalignError(f"{len(self.users)} users but {len(self.items)} histories")
        for name, other in (("splits", self.splits), ("times", self.times)):
            if other is not None and not np.array_equal(other.offsets, self.items.offsets):
                raise CatalignError(f"histories and their {name} differ in length")

    @classmethod
    def of(
        cls, histories: Iterable[tuple[str, Sequence[int]]], times: Iterable[Sequence[int]] | None = None
    ) -> Histories:
        """Histories from (user, product rows) pairs, split by :func:`catalign.data.holdout.leave_one_out`.

        Args:
            histories: The pairs.
            times: Per user, the events' times in seconds since 1970.
        """
        pairs = list(histories)
        items = Ragged.of(rows for _, rows in pairs)
        stamps = None if times is None else Ragged.of(times, np.int64)
        return cls([user for user, _ in pairs], items, leave_one_out(items), stamps)

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return f"Histories({in_words(self.describe())})"

    @property
    def owners(self) -> np.ndarray:
        """(events,) int64 the user of every event."""
        return np.repeat(np.arange(len(self)), self.items.lengths)

    def part(self, *labels: int) -> Ragged:
        """U rows: every user's products with one of these labels, in order; a user without any has an empty row."""
        kept = np.isin(self.splits.values, labels)
        return Ragged(self.items.values[kept], self.items.offsets_of(kept))

    def cases(self, split: str) -> Cases:
        """One question per event of a held-out split; the context is what the user did before.

        Events that are ``LEFT_OUT`` are in no context; for ``"test"`` the validation events before it are. An event
        with nothing before it is no question.

        Args:
            split: ``"val"`` or ``"test"``.

        Raises:
            CatalignError: Another split, or one without events.
        """
        if split not in ("val", "test"):
            raise unknown("held-out split of events", split, ("val", "test"))
        labels = np.asarray(self.splits.values)
        seen = labels != LEFT_OUT
        known = Ragged(self.items.values[seen], self.items.offsets_of(seen))
        before = np.cumsum(seen) - seen  # events of all users up to each one
        asked = np.flatnonzero(labels == LABELS[split])
        users = self.owners[asked]
        asked, users = (some[before[asked] > known.offsets[users]] for some in (asked, users))
        if not len(asked):
            raise CatalignError(
                f"no event to predict is labelled {split!r}", "hold some out: data.interactions.split=leave_one_out"
            )
        return Cases(
            users=users,
            contexts=known.slices(known.offsets[users], before[asked]),
            targets=self.items.values[asked].astype(np.int64),
        )

    def hold_out(self, config: InteractionsConfig) -> Histories:
        """The same histories with the labels that a config asks for.

        Raises:
            CatalignError: As :func:`catalign.data.holdout.label`.
        """
        return replace(self, splits=label(self.items, self.times, config))

    def select(self, rows: np.ndarray, total: int) -> Histories:
        """Renumber products after some were left out; their events, and users left without any, go too.

        Args:
            rows: (N,) the old row of each new one.
            total: Number of old rows.
        """
        new_row = np.full(total, -1, dtype=np.int32)
        new_row[rows] = np.arange(len(rows))
        items = new_row[self.items.values]
        return self._only(items >= 0, items)

    def core(self, min_user: int, min_item: int) -> Histories:
        """The largest part in which every user has so many events and every product too (a k-core).

        Leaving out users takes events from products and the other way round, so this goes on until both hold.

        Args:
            min_user: Events of a user at least.
            min_item: Events of a product at least.
        """
        kept = self
        while True:
            counts = np.bincount(kept.items.values)
            good = kept.items.lengths[kept.owners] >= min_user
            good &= counts[kept.items.values] >= min_item
            if good.all():
                return kept
            kept = kept._only(good, kept.items.values)

    def _only(self, kept: np.ndarray, items: np.ndarray) -> Histories:
        """Some events, (events,) bool, under new product numbers; users left without any go."""
        offsets = self.items.offsets_of(kept)
        there = np.flatnonzero(np.diff(offsets))
        offsets = np.concatenate([[0], offsets[there + 1]])
        return Histories(
            [self.users[user] for user in there],
            Ragged(items[kept], offsets),
            Ragged(self.splits.values[kept], offsets),
            None if self.times is None else Ragged(self.times.values[kept], offsets),
        )

    def describe(self) -> dict[str, Any]:
        """Numbers of users, products touched, events and repeats, lengths, density, labels and span of time."""
        lengths = self.items.lengths
        events, items = len(self.items.values), len(np.unique(self.items.values))
        pairs = len(np.unique(self.owners * (int(self.items.values.max(initial=0)) + 1) + self.items.values))
        facts: dict[str, Any] = {
            "users": len(self),
            "items": items,
            "events": events,
            "repeats": events - pairs,
            "mean_length": float(lengths.mean()) if len(self) else 0.0,
            "median_length": float(np.median(lengths)) if len(self) else 0.0,
            "density": pairs / (len(self) * items) if events else 0.0,
            "splits": {name: int((self.splits.values == label).sum()) for name, label in LABELS.items()},
        }
        if self.times is not None and events:
            ends = self.times.values.min(), self.times.values.max()
            facts["span"] = [datetime.fromtimestamp(float(end), UTC).strftime("%Y-%m-%d") for end in ends]
        return facts

    def save(self, folder: str | Path) -> None:
        """Write the users and ragged arrays into a folder."""
        write_json(Path(folder) / _USERS, {"users": self.users, "times": self.times is not None})
        self.items.save(folder, _ITEMS)
        self.splits.save(folder, _SPLITS)
        if self.times is not None:
            self.times.save(folder, _TIMES)

    @classmethod
    def load(cls, folder: str | Path) -> Histories:
        """Open what :meth:`save` wrote; memory-mapped.

        Raises:
            CatalignError: The folder has no histories, or broken ones.
        """
        known = read_json(Path(folder) / _USERS)
        if not (Path(folder) / f"{_SPLITS}.values.npy").is_file():
            raise CatalignError(f"the histories in {folder} are of an older version", "prepare the catalogue again")
        times = Ragged.load(folder, _TIMES) if known["times"] else None
        return cls(known["users"], Ragged.load(folder, _ITEMS), Ragged.load(folder, _SPLITS), times)


def in_words(facts: dict[str, Any]) -> str:
    """One line on what :meth:`Histories.describe` counted."""
    labels = ", ".join(f"{name} {count:,}" for name, count in facts["splits"].items() if count)
    span = f", {facts['span'][0]} to {facts['span'][1]}" if "span" in facts else ""
    return f"{facts['users']:,} users, {facts['items']:,} items, {facts['events']:,} events ({labels}){span}"
