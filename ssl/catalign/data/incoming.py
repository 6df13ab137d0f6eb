"""Products of a table that is not a run's own catalogue, read as the run's config reads its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from catalign.config import ColumnsConfig, DataConfig
from catalign.data.assemble import usable
from catalign.data.chunks import Part, Plan
from catalign.data.prepare import check_columns, columns_of, decode
from catalign.data.quarantine import BadRow
from catalign.data.sources import Csv, Source
from catalign.errors import CatalignError
from catalign.registry import build


@dataclass
class Incoming:
    """A table's usable products, chunk by chunk, and the rows that are none.

    Attributes:
        field: The primary text's name.
        attributes: The attributes that the table has.
        bad: Rows left out, with their reasons.
    """

    field: str
    attributes: list[str]
    bad: list[BadRow]
    _parts: list[Part]
    _keep: list[np.ndarray]

    def __iter__(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Tables with the columns of :meth:`Plan.schema`, and the (n, H, W, 3) photos of their rows that have one."""
        for part, keep in zip(self._parts, self._keep, strict=True):
            table = part.table()
            yield table.filter(pa.array(keep)), part.images()[keep[table["has_image"].to_numpy()]]


@contextmanager
def incoming(
    path: str | Path, config: DataConfig, *, attributes: list[str], images: str | None = None
) -> Iterator[Incoming]:
    """Read a Parquet, CSV or JSON lines file, or a folder of them, by the columns of a run's config.

    The table may lack attributes and photos, which are then missing, but not its ids and primary texts. Its splits and
    groups do not matter.

    Args:
        path: The table.
        config: The run's ``data``.
        attributes: Attributes wanted.
        images: Folder of the photos, where the image column holds paths.

    Raises:
        CatalignError: The table or a column does not exist, or it has no usable row.
    """
    if not Path(path).exists():
        raise CatalignError(f"{path} does not exist", "name a Parquet, CSV or JSON lines file, or a folder of them")
    source, name = _source(Path(path), config, images), Path(path).name
    columns = _columns(source.columns(), columns_of(config), attributes)
    with TemporaryDirectory() as folder:
        plan = Plan(columns, config.image_size, source.images, Path(folder))
        parts = decode(source, plan, config.model_copy(update={"name": name}), progress=True)
        keep, bad, _ = usable(parts)
        if not any(mask.any() for mask in keep):
            first = f": row {bad[0].row} ({bad[0].column}): {bad[0].reason}" if bad else ""
            raise CatalignError(f"{path} has no row that can be used{first}", "repair the table")
        yield Incoming(next(iter(columns.text)), columns.attributes, bad, parts, keep)


def _source(path: Path, config: DataConfig, images: str | None) -> Source:
    given: dict[str, Any] = {"path": str(path), "images": images}
    if config.source.name == "csv" and path.suffix.lower() in Csv.suffixes:
        return build("source", "csv", **{**config.source.options, **given})  # its delimiter and encoding
    return build("source", "table", **given)


def _columns(there: list[str], columns: ColumnsConfig, attributes: list[str]) -> ColumnsConfig:
    rename = {old: new for old, new in columns.rename.items() if old in there}
    names = [rename.get(name, name) for name in there]
    field = next(iter(columns.text))
    unpack = {  # a table may have as columns what the catalogue has inside of one
        column: {key: name for key, name in keys.items() if name in attributes and name not in names}
        for column, keys in columns.unpack.items()
        if column in names
    }
    names += [name for keys in unpack.values() for name in keys.values()]
    chosen = ColumnsConfig(
        id=columns.id,
        image=columns.image if columns.image in names else None,
        text={field: 1.0},
        attributes=[name for name in attributes if name in names],
        rename=rename,
        unpack=unpack,
    )
    check_columns(there, chosen)
    return chosen
