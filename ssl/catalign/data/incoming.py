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
from catalign.data import quarantine as report
from catalign.data.assemble import usable
from catalign.data.chunks import Part, Plan
from catalign.data.prepare import check_columns, columns_of, decode
from catalign.data.sources import Csv, Source
from catalign.errors import CatalignError
from catalign.registry import build


@dataclass
class Incoming:
    """A table's usable products, chunk by chunk.

    Attributes:
        field: The primary text's name.
        attributes: The attributes that the table has.
    """

    field: str
    attributes: list[str]
    _parts: list[Part]
    _keep: list[np.ndarray]

    def __iter__(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Tables with the columns of :meth:`Plan.schema`, and the (n, H, W, 3) photos of their rows that have one."""
        for part, keep in zip(self._parts, self._keep, strict=True):
            table = part.table()
            yield table.filter(pa.array(keep)), part.images()[keep[table["has_image"].to_numpy()]]


@contextmanager
def incoming(
    path: str | Path,
    config: DataConfig,
    *,
    attributes: list[str],
    images: str | None = None,
    quarantine: Path | None = None,
) -> Iterator[Incoming]:
    """Read a Parquet, CSV or JSON lines file, or a folder of them, by the columns of a run's config.

    The table may lack attributes and photos, which are then missing, but not its ids and primary texts. Its splits and
    groups do not matter.

    Args:
        path: The table.
        config: The run's ``data``.
        attributes: Attributes wanted.
        images: Folder of the photos, where the image column holds paths.
        quarantine: Where its bad rows are listed, if it has any.

    Raises:
        CatalignError: The table or a column does not exist, it has no rows, or too many of them are bad.
    """
    source, name = _source(Path(path), config, images), Path(path).name
    columns = _columns(source.columns(), columns_of(config), attributes)
    with TemporaryDirectory() as folder:
        plan = Plan(columns, config.image_size, source.images, Path(folder))
        parts = decode(source, plan, config.model_copy(update={"name": name}), progress=True)
        keep, bad, rows = usable(parts)
        if not rows:
            raise CatalignError(f"{path} has no rows", "check the file")
        if bad and quarantine is not None:
            report.write(quarantine, bad)
            report.check_share(name, bad, rows, config.max_bad_share, quarantine)
        yield Incoming(next(iter(columns.text)), columns.attributes, parts, keep)


def _source(path: Path, config: DataConfig, images: str | None) -> Source:
    given: dict[str, Any] = {"path": str(path), "images": images}
    if config.source.name == "csv" and path.suffix.lower() in Csv.suffixes:
        return build("source", "csv", **{**config.source.options, **given})  # its delimiter and encoding
    return build("source", "table", **given)


def _columns(there: list[str], columns: ColumnsConfig, attributes: list[str]) -> ColumnsConfig:
    rename = {old: new for old, new in columns.rename.items() if old in there}
    names = [rename.get(name, name) for name in there]
    field = next(iter(columns.text))
    chosen = ColumnsConfig(
        id=columns.id,
        image=columns.image if columns.image in names else None,
        text={field: 1.0},
        attributes=[name for name in attributes if name in names],
        rename=rename,
    )
    check_columns(there, chosen)
    return chosen
