"""Behaviour logs as files: text lines, CSV, Parquet, JSON lines and RecBole's atomic files, read column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from catalign.artifacts import checksum, digest
from catalign.config import InteractionsConfig
from catalign.data.cells import BadCellError, scalar
from catalign.data.events import STRING, Events, of_events, of_histories
from catalign.data.quarantine import MALFORMED, BadRow
from catalign.data.sources import Csv, JsonLines, files_below
from catalign.errors import CatalignError, unknown

VERSION = 1
"""Part of the fingerprint of every catalogue with a log: raise it when the same log would be read differently."""

ENDINGS = {
    ".txt": "lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".inter": "recbole",
}
_NAMES = {
    "user": ("user", "user_id"),
    "item": ("item", "item_id"),
    "time": ("timestamp", "time"),
    "event": ("event", "event_type"),
    "history": ("history", "item_id_list"),
    "target": ("target", "item_id"),
}
Table = tuple[pa.Table, list[BadRow]]
"""The readable rows of one file, with roles (user, item, time, event, history, target) as columns, and the others."""


def fingerprint(config: InteractionsConfig) -> str:
    """A hash of the log's content and of every setting.

    Raises:
        CatalignError: There is no such log.
    """
    sums = [checksum(file) for file in _files(config)[1]] if config.path is not None else []
    return digest([VERSION, sums, config.model_dump(mode="json", exclude={"path"})], 64)


def read(config: InteractionsConfig) -> Events:
    """Read a log, a file or a folder of files.

    Formats: ``lines`` (a user, then its items in time order; a user may go on in a later line); ``csv``, ``parquet``
    and ``jsonl`` with one event per row or, where there is a column of histories, one user per row; ``recbole`` (atomic
    files of the RecBole library, Zhao et al. 2021), with either.

    Raises:
        CatalignError: There is no such file, it is not of its format, a column is missing, or there are no rows.
    """
    kind, files = _files(config)
    parts = [_READERS[kind](file, config) for file in files]
    table, bad = _joined(parts)
    rows = len(table) + len(bad)
    if not rows:
        raise CatalignError(f"the log {config.path} is empty", "check data.interactions.path")
    number = np.setdiff1d(np.arange(rows), [row.row for row in bad], assume_unique=True)
    if "history" in table.column_names:
        events = of_histories(table, number, bad, once=kind != "lines")
    else:
        events = of_events(table, number, bad)
    if len(files) == 1:
        return events
    starts = np.cumsum([0, *(len(table) + len(bad) for table, bad in parts)])
    return replace(events, bad=[_located(row, files, starts) for row in events.bad])


def _located(bad: BadRow, files: list[Path], starts: np.ndarray) -> BadRow:
    """A bad row of a log of several files, its reason followed by its file and its number there."""
    place = int(np.searchsorted(starts, bad.row, side="right")) - 1
    joint = "," if ":" in bad.reason else ":"  # what stands before the first colon is counted
    return replace(bad, reason=f"{bad.reason}{joint} row {bad.row - starts[place]} of {files[place].name}")


def _files(config: InteractionsConfig) -> tuple[str, list[Path]]:
    """The log's format and its files, more than one where the path is a folder."""
    if config.path in (None, "???"):
        raise CatalignError("the log's path is not given", "name it: data.interactions.path=PATH")
    path = Path(str(config.path)).expanduser()
    if not path.exists():
        raise CatalignError(f"the log {path} does not exist", "check data.interactions.path")
    files = files_below(path, frozenset(ENDINGS)) if path.is_dir() else [path]
    if not files:
        raise CatalignError(f"no log in the folder {path}", f"a log's name ends in one of {', '.join(ENDINGS)}")
    kind = config.format or ENDINGS.get(files[0].suffix.lower())
    if kind is None:
        error = unknown("kind of log", path.name, ("*" + ending for ending in ENDINGS))
        raise CatalignError(error.problem, f"{error.remedy}; or name its format: data.interactions.format=csv")
    return kind, files


def _joined(parts: list[Table]) -> Table:
    bad: list[BadRow] = []
    first = 0
    for table, wrong in parts:
        bad += [BadRow(first + row.row, row.id, row.column, row.reason) for row in wrong]
        first += len(table) + len(wrong)
    tables = [table for table, _ in parts if table.num_columns]
    try:
        return pa.concat_tables(tables) if tables else pa.table({}), bad
    except pa.ArrowInvalid:
        raise CatalignError("the log's files differ in their columns", "give them the same ones") from None


def _lines(path: Path, config: InteractionsConfig) -> Table:
    try:
        lines = pa.array(path.read_text(encoding="utf-8-sig").split("\n"), STRING)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    lines = pc.utf8_trim_whitespace(lines)
    words = pc.utf8_split_whitespace(lines.filter(pc.not_equal(lines, "")))
    names, counts = words.flatten(), pc.list_value_length(words).to_numpy()
    _refuse_events(path, names, counts)
    is_user = np.zeros(len(names), dtype=bool)
    is_user[np.cumsum(counts) - counts] = True
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts - 1)]))
    items = pa.LargeListArray.from_arrays(offsets, names.filter(pa.array(~is_user)))
    return pa.table({"user": names.filter(pa.array(is_user)), "history": items}), []


def _refuse_events(path: Path, names: pa.Array, counts: np.ndarray) -> None:
    """Lines of a user, an item and a time would be read as short histories that hold times, and CSV as users alone.

    Raises:
        CatalignError: Every line has the same three or four words, and in one place all are times; or lines are one
            word with commas.
    """
    if len(counts) and counts.max() == 1 and pc.all(pc.match_substring(names, ",")).as_py():
        raise CatalignError(
            f"{path} has commas, not blanks, between its words", "data.interactions.format=csv reads it"
        )
    if not len(counts) or counts.min() != counts.max() or counts[0] not in (3, 4):
        return
    columns = [names[place :: counts[0]] for place in range(counts[0])]
    again = len(columns[0].unique()) < len(counts)  # users go on in later lines
    if again and any(pc.all(pc.match_substring_regex(words, r"^\d{9,}(\.\d+)?$")).as_py() for words in columns[1:]):
        problem = f"{path} looks like one event per line, with its time, but is read as a user and all of its items"
        header = "give it a header line such as user<TAB>item<TAB>time"
        raise CatalignError(problem, f"{header}, and read it as CSV: name it .tsv, or data.interactions.format=csv")


def _csv(path: Path, config: InteractionsConfig) -> Table:
    source = Csv(path=str(path), delimiter=config.delimiter)
    header = _header(source)
    return _cells(path, _used(header, config, path), source.delimiter, quote='"') if header else _NOTHING


def _recbole(path: Path, config: InteractionsConfig) -> Table:
    """Atomic files have a type after every column's name, tabs between cells, and no quotes."""
    if not (header := _header(Csv(path=str(path), delimiter="\t"))):
        return _NOTHING
    if untyped := [name for name in header if ":" not in name]:
        raise CatalignError(
            f"{path}: column {untyped[0]!r} has no type, so this is no RecBole file",
            "its header is like user_id:token<TAB>item_id:token<TAB>timestamp:float; or data.interactions.format=csv",
        )
    typed = {name.partition(":")[0]: name for name in header}
    used = {role: typed[column] for role, column in _used(typed, config, path).items()}
    return _cells(path, used, "\t", quote=False)


_NOTHING: Table = (pa.table({}), [])


def _header(source: Csv) -> list[str]:
    try:
        return source.columns()
    except UnicodeDecodeError as error:
        raise _not_utf8(source.path, error) from None


def _not_utf8(path: Path, error: Exception) -> CatalignError:
    packed = path.suffix.lower() in {".gz", ".bz2", ".xz", ".zip", ".zst"}
    return CatalignError(f"{path} is not UTF-8 text: {error}", "unpack it first" if packed else "store it as UTF-8")


def _cells(path: Path, used: dict[str, str], delimiter: str, quote: str | bool) -> Table:
    bad: list[BadRow] = []

    def malformed(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"malformed: {row.actual_columns} cells, the header has {row.expected_columns}"
        bad.append(BadRow(row.number - 2, "", "", reason))  # it counts from 1, and the header too
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # rows have no numbers otherwise
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote), invalid_row_handler=malformed
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(dict.fromkeys(used.values())),
                column_types=dict.fromkeys(used.values(), STRING),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise CatalignError(f"{path} cannot be read: {error}", "it must be UTF-8 text with one header") from None
    return pa.table({role: table[column] for role, column in used.items()}), bad


def _parquet(path: Path, config: InteractionsConfig) -> Table:
    try:
        file = pq.ParquetFile(path)
        used = _used(file.schema_arrow.names, config, path)
        table = file.read(columns=list(dict.fromkeys(used.values())))
    except (pa.ArrowException, OSError) as error:
        raise CatalignError(f"{path} is not a whole Parquet file: {error}", "copy or write it again") from None
    return pa.table({role: table[column] for role, column in used.items()}), []


def _jsonl(path: Path, config: InteractionsConfig) -> Table:
    source = JsonLines(path=str(path))
    if not (header := source.columns()):
        return _NOTHING
    used = _used(header, config, path)
    rows: dict[str, list[Any]] = {role: [] for role in used}
    bad: list[BadRow] = []
    first = 0
    for chunk in source.chunks(65_536, list(used.values())):
        for place, reason in enumerate(chunk[MALFORMED]):
            try:
                if reason:
                    raise BadCellError(None, reason)
                cells = {role: _plain(chunk[column][place], role, column) for role, column in used.items()}
            except BadCellError as error:
                bad.append(BadRow(first + place, "", error.column, error.reason))
                continue
            for role, cell in cells.items():
                rows[role].append(cell)
        first += len(chunk[MALFORMED])
    types = {role: pa.large_list(STRING) if role == "history" else STRING for role in used}
    return pa.table({role: pa.array(cells, types[role]) for role, cells in rows.items()}), bad


def _plain(cell: Any, role: str, column: str) -> str | list[str] | None:
    if role != "history":
        return scalar(cell, column) or None
    return [scalar(item, column) for item in cell] if isinstance(cell, list) else scalar(cell, column).split()


_READERS: dict[str, Callable[[Path, InteractionsConfig], Table]] = {
    "lines": _lines,
    "csv": _csv,
    "recbole": _recbole,
    "parquet": _parquet,
    "jsonl": _jsonl,
}


def _between(header: list[str]) -> str:
    """What to do about a header whose cells have another delimiter between them."""
    mark = next((mark for mark in "\t;|" if len(header) == 1 and mark in header[0]), None)
    if mark == "\t":
        return "; or name it .tsv, as tabs are between its cells"
    return f"; or say what is between its cells: 'data.interactions.delimiter=\"{mark}\"'" if mark else ""


def _used(there: Iterable[str], config: InteractionsConfig, path: Path) -> dict[str, str]:
    """The column of every role that the log fills: the named one, or one of a usual name."""
    there = list(there)
    named = {role: column for role, column in config.columns.model_dump().items() if column is not None}
    for role, column in named.items():
        if column not in there:
            error = unknown("column", column, there)
            problem = f"data.interactions.columns.{role} names column {column!r}, which {path} does not have"
            raise CatalignError(problem, error.remedy)
    usual = {role: next((name for name in names if name in there), None) for role, names in _NAMES.items()}
    found = {role: column for role, column in {**usual, **named}.items() if column is not None}
    wanted = ("user", "history", "target") if "history" in found else ("user", "item", "time", "event")
    for role in wanted[:2]:
        if role not in found:
            raise CatalignError(
                f"{path} has no column of {role}s ({' or '.join(_NAMES[role])})",
                f"name it: data.interactions.columns.{role}=COLUMN; there are: {', '.join(there)}{_between(there)}",
            )
    return {role: found[role] for role in wanted if role in found}
