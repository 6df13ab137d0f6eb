"""User histories: who bought or viewed which products, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalign.artifacts import read_json, write_json
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError

_USERS, _ITEMS, _TIMES = "users.json", "histories", "history_times"


@dataclass(frozen=True, eq=False)
class Histories:
    """What each user bought or viewed, oldest first.

    Attributes:
        users: U user ids.
        items: U rows of product row numbers.
        times: The same shape as ``items``, in seconds since 1970; None where it is not known.

    Raises:
        CatalignError: The three do not fit together.
    """

    users: list[str]
    items: Ragged
    times: Ragged | None = None

    def __post_init__(self) -> None:
        if len(self.users) != len(self.items):
            raise CatalignError(f"{len(self.users)} users but {len(self.items)} histories")
        if self.times is not None and not np.array_equal(self.times.offsets, self.items.offsets):
            raise CatalignError("histories and their times differ in length")

    @classmethod
    def of(cls, histories: Iterable[tuple[str, Sequence[int]]]) -> Histories:
        """Histories from (user, product rows) pairs."""
        pairs = list(histories)
        return cls([user for user, _ in pairs], Ragged.of(items for _, items in pairs))

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return f"Histories({len(self)} users, {len(self.items.values)} interactions)"

    def select(self, rows: np.ndarray, total: int) -> Histories:
        """Renumber products after some were left out; their interactions, and users left without any, go too.

        Args:
            rows: (N,) the old row of each new one.
            total: Number of old rows.
        """
        new_row = np.full(total, -1, dtype=np.int32)
        new_row[rows] = np.arange(len(rows))
        items = new_row[self.items.values]
        kept = items >= 0
        owner = np.repeat(np.arange(len(self)), self.items.lengths)[kept]
        lengths = np.bincount(owner, minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)
        users = [self.users[user] for user in np.flatnonzero(lengths)]
        times = None if self.times is None else Ragged(self.times.values[kept], offsets)
        return Histories(users, Ragged(items[kept], offsets), times)

    def save(self, folder: str | Path) -> None:
        """Write the users and ragged arrays into a folder."""
        write_json(Path(folder) / _USERS, {"users": self.users, "times": self.times is not None})
        self.items.save(folder, _ITEMS)
        if self.times is not None:
            self.times.save(folder, _TIMES)

    @classmethod
    def load(cls, folder: str | Path) -> Histories:
        """Open what :meth:`save` wrote; memory-mapped.

        Raises:
            CatalignError: The folder has no histories, or broken ones.
        """
        known = read_json(Path(folder) / _USERS)
        times = Ragged.load(folder, _TIMES) if known["times"] else None
        return cls(known["users"], Ragged.load(folder, _ITEMS), times)
