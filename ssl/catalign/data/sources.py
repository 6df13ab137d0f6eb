"""Where a catalogue's rows come from: Parquet, CSV, JSON lines, an image folder, the Hugging Face hub.

A source is registered with ``register("source", name)``; its keyword-only parameters are its options in a config.
"""

from __future__ import annotations

import csv
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from catalign.artifacts import checksum, digest
from catalign.data.images import SUFFIXES
from catalign.data.quarantine import MALFORMED
from catalign.errors import CatalignError, unknown
from catalign.registry import register

if TYPE_CHECKING:
    from catalign.data.interactions import Histories

Chunk = dict[str, list[Any]]
"""Some rows by column, every list as long as the others."""


class Source(ABC):
    """Rows of a table in a fixed order, some at a time; never the whole table in memory.

    A cell of an image column is encoded bytes, ``{"bytes": …, "path": …}`` (how the datasets library stores images), a
    path relative to ``images``, a uint8 array (H, W, 3), or None where there is no image.

    Attributes:
        images: Folder that relative image paths start from.
        rows: Number of rows, where it is known without reading them.
        bare: Whether products may have neither a text nor a photo: behaviour alone tells of them.
    """

    images: Path | None = None
    rows: int | None = None
    bare: bool = False

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns there are."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the content: another one when any row may have changed."""

    @abstractmethod
    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Some columns of all rows, ``size`` rows at a time. The extra column ``MALFORMED`` tells unreadable lines."""

    def histories(self) -> Histories | None:
        """What users bought or viewed, as row numbers of this source; None where it is not known."""
        return None


def existing(path: str, key: str = "data.source.path") -> Path:
    """The path that a config key names, checked.

    Raises:
        CatalignError: It was not given or does not exist.
    """
    if path == "???":
        raise CatalignError("the catalogue's path is not given", f"name it: {key}=PATH")
    found = Path(path).expanduser()
    if not found.exists():
        raise CatalignError(
            f"{found} does not exist",
            f"check {key}; a local copy of public data is found with data.root=FOLDER "
            "or the environment variable CATALIGN_DATA=FOLDER",
        )
    return found


def folder_fingerprint(folder: Path) -> str:
    """Hash of the names, sizes and modification times below a folder: reading every photo would take too long."""
    entries = []
    for path in files_below(folder):
        status = path.stat()
        entries.append([path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns])
    return digest(entries, length=64)


def files_below(folder: Path, suffixes: frozenset[str] | None = None) -> list[Path]:
    """The files below a folder, hidden ones left out, in an order that is the same on every machine."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if suffixes is None or path.suffix.lower() in suffixes)


class _Table(Source):
    """A table in one file, or in a folder of files of one kind, with photos inside or in a folder."""

    suffixes: frozenset[str]

    def __init__(self, path: str, images: str | None) -> None:
        self.path = existing(path)
        self.files = files_below(self.path, self.suffixes) if self.path.is_dir() else [self.path]
        if not self.files:
            kinds = " or ".join(sorted(self.suffixes))
            raise CatalignError(f"no {kinds} file in {self.path}", "check data.source.path")
        self._photos = existing(images) if images is not None else None
        self.images = self._photos or self.files[0].parent

    def fingerprint(self) -> str:
        """SHA-256 of every file, and :func:`folder_fingerprint` of the photos where a folder was named."""
        photos = folder_fingerprint(self._photos) if self._photos is not None else None
        return digest([[checksum(file) for file in self.files], photos], 64)


@register("source", "parquet")
class Parquet(_Table):
    """A Parquet file or a folder of them, read a record batch at a time.

    Args:
        path: The file or folder.
        images: Folder of the photos, where the image column holds paths; the table's own folder by default.
    """

    suffixes = frozenset({".parquet"})

    def __init__(self, *, path: str, images: str | None = None) -> None:
        super().__init__(path, images)
        self.rows = sum(self._open(file).metadata.num_rows for file in self.files)

    def _open(self, file: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(file, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise CatalignError(f"{file} is not a whole Parquet file: {error}", "copy or write it again") from None

    def columns(self) -> list[str]:
        """The columns of the first file; later files must have those that are used."""
        return list(self._open(self.files[0]).schema_arrow.names)

    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Record batches; columns that are not asked for are not read."""
        for file in self.files:
            table = self._open(file)
            for column in columns:
                if column not in table.schema_arrow.names:
                    raise unknown(f"column of {file}", column, table.schema_arrow.names)
            try:
                for batch in table.iter_batches(size, columns=list(columns), use_threads=False):
                    yield {column: batch.column(column).to_pylist() for column in columns}
            except (pa.ArrowException, OSError) as error:
                raise CatalignError(f"{file} cannot be read: {error}", "copy or write it again") from None


class _Lines(_Table):
    """A table in text files, one row after the other."""

    encoding: str

    def _rows(self, file: TextIO) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _read(self) -> Iterator[dict[str, Any]]:
        for path in self.files:
            try:
                with path.open(encoding=self.encoding, newline="") as file:
                    yield from self._rows(file)
            except UnicodeDecodeError as error:
                raise CatalignError(
                    f"{path} is not {self.encoding}: {error}", "name its encoding, such as data.source.encoding=latin-1"
                ) from None
            except csv.Error as error:
                raise CatalignError(f"{path} is not a CSV file: {error}", "check data.source.delimiter") from None
            except LookupError:
                raise CatalignError(f"unknown encoding {self.encoding!r}", "data.source.encoding=utf-8") from None

    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Parsed lines."""
        rows = self._read()
        while some := list(islice(rows, size)):
            yield {column: [row.get(column) for row in some] for column in (*columns, MALFORMED)}


@register("source", "csv")
class Csv(_Lines):
    """A CSV file with a header, or a folder of them; every cell is text and an empty one is missing.

    Args:
        path: The file or folder.
        images: Folder that the image column's paths start from; the table's own folder by default.
        delimiter: Between the cells; a tab for ``.tsv`` files and a comma otherwise by default.
        encoding: How the file's text is stored.
    """

    suffixes = frozenset({".csv", ".tsv"})

    def __init__(
        self, *, path: str, images: str | None = None, delimiter: str | None = None, encoding: str = "utf-8-sig"
    ) -> None:
        super().__init__(path, images)
        self.encoding = encoding
        self.delimiter = delimiter or ("\t" if self.files[0].suffix.lower() == ".tsv" else ",")
        if len(self.delimiter) != 1:
            problem = f"{self.files[0]}: the delimiter {self.delimiter!r} is not a single character"
            raise CatalignError(problem, "put a tab between its cells in place of it")
        csv.field_size_limit(2**31 - 1)  # descriptions can be longer than the csv module's 128 kB

    def columns(self) -> list[str]:
        """The header's names.

        Raises:
            CatalignError: A name is there twice.
        """
        with self.files[0].open(encoding=self.encoding, newline="") as file:
            header = next(csv.reader(file, delimiter=self.delimiter), [])
        if len(set(header)) != len(header):
            twice = sorted({column for column in header if header.count(column) > 1})
            raise CatalignError(f"{self.files[0]}: column {twice[0]!r} is there twice", "rename one in the header")
        return header

    def _rows(self, file: TextIO) -> Iterator[dict[str, Any]]:
        reader = csv.reader(file, delimiter=self.delimiter)
        header = next(reader, [])
        for cells in reader:
            if not cells:
                continue  # a blank line
            if len(cells) != len(header):
                yield {MALFORMED: f"malformed: {len(cells)} cells, the header has {len(header)}"}
            else:
                yield dict(zip(header, cells, strict=True))


@register("source", "jsonl")
class JsonLines(_Lines):
    """A file of JSON objects, one per line, or a folder of them.

    Args:
        path: The file or folder.
        images: Folder that the image column's paths start from; the table's own folder by default.
    """

    suffixes = frozenset({".jsonl", ".ndjson"})
    encoding = "utf-8-sig"

    def __init__(self, *, path: str, images: str | None = None) -> None:
        super().__init__(path, images)

    def columns(self) -> list[str]:
        """The keys of the first 1,000 rows: a row may leave out what it has no value for."""
        return list(dict.fromkeys(key for row in islice(self._read(), 1000) for key in row if key != MALFORMED))

    def _rows(self, file: TextIO) -> Iterator[dict[str, Any]]:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield {MALFORMED: f"malformed: not JSON ({error})"}
                continue
            if not isinstance(row, dict):
                row = {MALFORMED: f"malformed: a JSON {type(row).__name__}, not an object"}
            yield row


@register("source", "table")
def table(*, path: str, images: str | None = None) -> Source:
    """A Parquet, CSV or JSON lines file, told apart by its name's ending (that of the first file for a folder).

    Raises:
        CatalignError: Any other ending.
    """
    found = existing(path)
    kinds: tuple[type[_Table], ...] = (Parquet, Csv, JsonLines)
    names = [file.suffix.lower() for file in files_below(found)] if found.is_dir() else [found.suffix.lower()]
    for kind in kinds:
        if kind.suffixes.intersection(names):
            return kind(path=path, images=images)  # type: ignore[call-arg]
    raise unknown("kind of table", found.name, ("*" + suffix for kind in kinds for suffix in kind.suffixes))


@register("source", "folder")
class Folder(Source):
    """Photos alone, below one folder.

    Columns: ``id`` (path below the folder), ``image``, ``title`` (words of the photo's folder and file name; digits
    are no words, so it may be empty) and ``folder``.

    Args:
        path: The folder.
    """

    def __init__(self, *, path: str) -> None:
        self.images = existing(path)
        if not self.images.is_dir():
            raise CatalignError(f"{path} is a file, not a folder", "data=table reads tables")
        self.files = [file.relative_to(self.images) for file in files_below(self.images, SUFFIXES)]
        self.rows = len(self.files)

    def columns(self) -> list[str]:
        """Those named above."""
        return ["id", "image", "title", "folder"]

    def fingerprint(self) -> str:
        """As :func:`folder_fingerprint`."""
        return folder_fingerprint(self.images or Path())

    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Paths and the words in them."""
        for start in range(0, len(self.files), size):
            files = self.files[start : start + size]
            rows: Chunk = {
                "id": [file.as_posix() for file in files],
                "image": [file.as_posix() for file in files],
                "title": [" ".join(re.findall(r"[^\W\d_]+", f"{file.parent.name} {file.stem}")) for file in files],
                "folder": ["" if file.parent == Path() else file.parent.as_posix() for file in files],
            }
            yield {column: rows[column] for column in columns}


# Sources in modules of their own, which import this one: they are known once this one is.
import catalign.data.hub  # noqa: E402
import catalign.data.logs  # noqa: E402
import catalign.data.synthetic  # noqa: E402, F401
