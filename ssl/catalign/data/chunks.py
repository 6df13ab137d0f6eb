"""One chunk of a source, checked and decoded: what a preparing process does, and what it leaves on disk.

A chunk becomes ``parts/<number>.npy`` (photos), ``.arrow`` (the other cells) and, last, ``.json`` (rows and bad rows):
a chunk is done exactly when its JSON file exists, so that a killed preparation goes on where it stopped.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

from catalign.artifacts import atomic, read_json, write_json
from catalign.config import ColumnsConfig
from catalign.data import images
from catalign.data.cells import MISSING, BadCellError, json_object, scalar
from catalign.data.quarantine import MALFORMED, BadRow
from catalign.data.sources import Chunk
from catalign.data.text import clean


@dataclass(frozen=True)
class Plan:
    """What every chunk is prepared by.

    Attributes:
        columns: What the source's columns mean.
        image_size: Height and width of a stored photo.
        images: Where relative image paths start.
        parts: The folder chunks are written to.
        bare: Whether a product may have neither a text nor a photo.
    """

    columns: ColumnsConfig
    image_size: tuple[int, int]
    images: Path | None
    parts: Path
    bare: bool = False

    def schema(self) -> pa.Schema:
        """The columns of a chunk's table, and of the catalogue's."""
        fixed = [("id", pa.string()), ("row", pa.int64()), ("has_image", pa.bool_())]
        texts = [(f"text:{field}", pa.string()) for field in self.columns.text]
        attributes = [(f"attribute:{name}", pa.string()) for name in self.columns.attributes]
        return pa.schema([*fixed, ("group", pa.string()), ("split", pa.string()), *texts, *attributes])


@dataclass(frozen=True)
class Part:
    """A finished chunk on disk."""

    parts: Path
    number: int

    def path(self, suffix: str) -> Path:
        """One of its three files."""
        return self.parts / f"{self.number:07d}{suffix}"

    @property
    def done(self) -> bool:
        """Whether it was written to its end."""
        return self.path(".json").is_file()

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Its cells."""
        return feather.read_table(self.path(".arrow"), columns=columns)

    def images(self) -> np.ndarray:
        """(n, H, W, 3) photos of the rows that have one."""
        return np.load(self.path(".npy"), allow_pickle=False)

    def report(self) -> tuple[int, list[BadRow]]:
        """Number of source rows it covers, and the bad ones among them."""
        report = read_json(self.path(".json"))
        return report["rows"], [BadRow(**row) for row in report["bad"]]


def process(number: int, first: int, chunk: Chunk, plan: Plan) -> int:
    """Check and decode one chunk and write its part.

    Args:
        number: The chunk's number.
        first: The source row it starts with.
        chunk: Its rows.
        plan: How.

    Returns:
        The number of rows.
    """
    part = Part(plan.parts, number)
    count = len(next(iter(chunk.values())))
    rows: dict[str, list[Any]] = {name: [] for name in plan.schema().names}
    photos: list[np.ndarray] = []
    bad: list[BadRow] = []
    for offset in range(count):
        cells = {column: values[offset] for column, values in chunk.items()}
        identity = ""
        try:
            if cells.pop(MALFORMED, None):
                raise BadCellError(None, chunk[MALFORMED][offset])
            identity = _id(cells, first + offset, plan.columns)
            row, photo = _row(cells | _unpacked(cells, plan.columns), plan)
        except BadCellError as error:
            bad.append(BadRow(first + offset, identity, error.column, error.reason))
            continue
        for name, value in {**row, "id": identity, "row": first + offset, "has_image": photo is not None}.items():
            rows[name].append(value)
        if photo is not None:
            photos.append(photo)
    with atomic(part.path(".npy")) as temporary:
        np.save(temporary, np.stack(photos) if photos else np.zeros((0, *plan.image_size, 3), dtype=np.uint8))
    with atomic(part.path(".arrow")) as temporary:
        feather.write_feather(pa.table(rows, schema=plan.schema()), str(temporary), compression="uncompressed")
    write_json(part.path(".json"), {"rows": count, "bad": [asdict(row) for row in bad]})
    return count


def _row(cells: dict[str, Any], plan: Plan) -> tuple[dict[str, Any], np.ndarray | None]:
    columns = plan.columns
    row: dict[str, Any] = {f"text:{field}": _text(cells[field], field) for field in columns.read}
    for name in columns.attributes:
        value = scalar(cells[name], name)
        row[f"attribute:{name}"] = "" if value in MISSING else value
    for field, parts in columns.joined.items():
        row[f"text:{field}"] = ", ".join(filter(None, (clean(row[f"attribute:{part}"]) for part in parts)))
    row["group"] = (scalar(cells[columns.group], columns.group) or None) if columns.group else None
    row["split"] = scalar(cells[columns.split], columns.split) if columns.split else ""
    photo = None
    if columns.image is not None and not images.is_absent(cells[columns.image]):
        try:
            photo = images.load(cells[columns.image], plan.image_size, plan.images)
        except images.BadImageError as error:
            raise BadCellError(columns.image, str(error)) from None
    if not plan.bare and photo is None and not any(row[f"text:{field}"] for field in columns.read):
        raise BadCellError(next(iter(columns.text)), "missing text: neither a text nor an image")
    return row, photo


def _unpacked(cells: dict[str, Any], columns: ColumnsConfig) -> dict[str, Any]:
    """The wanted keys of columns that hold JSON objects, by their names here; None where an object lacks one."""
    found: dict[str, Any] = {}
    for column, keys in columns.unpack.items():
        values = json_object(cells.get(column), column)
        found |= {name: values.get(key) for key, name in keys.items()}
    return found


def _id(cells: dict[str, Any], row: int, columns: ColumnsConfig) -> str:
    if columns.id is None:
        return str(row)
    identity = scalar(cells[columns.id], columns.id)
    if not identity:
        raise BadCellError(columns.id, "missing id")
    return identity


def _text(cell: Any, column: str) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if not isinstance(cell, str):
        raise BadCellError(column, f"wrong type: {type(cell).__name__}, not text")
    return clean(cell)
