"""Rows of different lengths in one flat array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalign.artifacts import atomic
from catalign.errors import CatalignError


class Ragged:
    """Rows of different lengths in one flat array; both arrays may be memory-mapped, as :meth:`pad` reads few of them.

    Args:
        values: (total,) integers of all rows, one row after the other.
        offsets: (N + 1,) int64; row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    Raises:
        CatalignError: The offsets do not describe the values.
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values):
            raise CatalignError(
                f"ragged array: offsets do not end at its {len(values)} values", "prepare the data again"
            )
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray], dtype: Any = np.int32) -> Ragged:
        """Pack rows into values of one integer type."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 length of every row."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """(B,) int64 lengths of some rows."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def offsets_of(self, kept: np.ndarray) -> np.ndarray:
        """(N + 1,) int64 offsets of the same rows when only some values are kept, (total,) bool."""
        return np.concatenate([[0], np.cumsum(kept)])[self.offsets].astype(np.int64)

    def of_each(self, value: int, dtype: Any) -> Ragged:
        """Rows of the same lengths that hold one value throughout."""
        return Ragged(np.full(len(self.values), value, dtype=dtype), self.offsets)

    def slices(self, starts: np.ndarray, stops: np.ndarray) -> Ragged:
        """R new rows: the values from ``starts[i]`` to before ``stops[i]``, which may overlap."""
        offsets = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
        return Ragged(self.values[places], offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows, {len(self.values)} values)"

    def pad(self, rows: np.ndarray, length: int | None = None, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Some rows as one rectangle.

        Args:
            rows: (B,) row numbers, 0 to N - 1.
            length: Columns of the result; longer rows are cut. The longest row's length if None.
            fill: The value after a row's end.

        Returns:
            (B, L) int64 values and (B, L) bool, True where a value is the row's own.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        columns = np.arange(lengths.max(initial=0) if length is None else length)
        mask = columns < lengths[:, None]
        padded = np.full(mask.shape, fill, dtype=np.int64)
        padded[mask] = self.values[(starts[:, None] + columns)[mask]]
        return padded, mask

    def save(self, folder: str | Path, name: str) -> None:
        """Write ``<name>.values.npy`` and ``<name>.offsets.npy``."""
        for part, array in (("values", self.values), ("offsets", self.offsets)):
            with atomic(Path(folder) / f"{name}.{part}.npy") as temporary:
                np.save(temporary, array)

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Ragged:
        """Open what :meth:`save` wrote; values stay on disk until they are read."""
        values = np.load(Path(folder) / f"{name}.values.npy", mmap_mode="r", allow_pickle=False)
        return cls(values, np.load(Path(folder) / f"{name}.offsets.npy", allow_pickle=False))
