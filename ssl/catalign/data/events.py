"""Columns of a log as events: ids as text, times as numbers, rows that are no events into the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalign.data.quarantine import BadRow
from catalign.errors import CatalignError

STRING = pa.large_string()
"""The type of ids: offsets of 64 bits, as those of a large log exceed 2 GB."""

_UNITS = ((1e17, 1e-3), (1e14, 1.0), (1e11, 1e3))
"""Numbers of at least this size, and microseconds per unit: 1e11 seconds are the year 5138, 1e11 ms are 1973."""
_LAST = 253_402_300_799  # the year 9999


@dataclass(frozen=True, eq=False)
class Events:
    """The readable events of a log in the order of its file.

    Attributes:
        users: E user ids, large_string.
        items: E item ids, large_string.
        times: (E,) int64 microseconds since 1970; None where the log has none.
        kinds: E kinds of event ("" where missing), large_string; None where the log has none.
        rows: Number of rows in the file, readable or not; a row is an event or a user's history.
        bad: The unreadable rows.
    """

    users: pa.Array
    items: pa.Array
    times: np.ndarray | None
    kinds: pa.Array | None
    rows: int
    bad: list[BadRow]


def of_events(table: pa.Table, number: np.ndarray, bad: list[BadRow]) -> Events:
    """A table with one event per row.

    Args:
        table: The columns ``user``, ``item`` and, where there are, ``time`` and ``event``.
        number: (rows,) their numbers in the file.
        bad: Rows of the file that are not in the table.

    Raises:
        CatalignError: A column holds lists or the like.
    """
    users, items = _strings(table["user"], "user"), _strings(table["item"], "item")
    faults = {"user: missing user": _is_null(users), "item: missing item": _is_null(items)}
    times = kinds = None
    if "time" in table.column_names:
        times, wrong = microseconds(table["time"])
        missing = _is_null(table["time"])
        faults |= {"time: missing time": missing, "time: unparsable time": wrong & ~missing}
    if "event" in table.column_names:
        kinds = pc.fill_null(_strings(table["event"], "event"), "")
    good, wrong_rows = _first_faults(faults, len(table))
    report = []
    for row, column, reason in wrong_rows:
        if reason == "unparsable time":
            reason += f": {table['time'][row].as_py()!r} is neither an ISO date nor seconds since 1970"
        report.append(BadRow(int(number[row]), items[row].as_py() or "", column, reason))
    kept = pa.array(good)
    return Events(
        users.filter(kept),
        items.filter(kept),
        None if times is None else times[good],
        None if kinds is None else kinds.filter(kept),
        rows=len(table) + len(bad),
        bad=[*bad, *report],
    )


def of_histories(table: pa.Table, number: np.ndarray, bad: list[BadRow], *, once: bool) -> Events:
    """A table with one user per row, whose items lie in one cell, and perhaps the last one in another.

    Args:
        table: The columns ``user``, ``history`` (lists, or texts with white space between the items) and perhaps
            ``target``.
        number: (rows,) their numbers in the file.
        bad: Rows of the file that are not in the table.
        once: A user's second row is bad, as in tables that hold every prefix of a history; else it goes on with it.

    Raises:
        CatalignError: A column is of another type.
    """
    users, lists = _strings(table["user"], "user"), _combined(table["history"])
    if not pa.types.is_large_list(lists.type) and not pa.types.is_list(lists.type):
        cells = _strings(lists, "history")
        # A table that pandas wrote holds lists as Python prints them: ['a', 'b'].
        bare = pc.replace_substring_regex(cells, r"[\[\]'\",]+", " ")
        printed = pc.match_substring_regex(cells, r"^\s*\[.*\]\s*$")
        lists = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.if_else(printed, bare, cells)))
    items, owner = _strings(lists.flatten(), "history"), pc.list_parent_indices(lists).to_numpy()
    if "target" in table.column_names:
        items, owner = _with_targets(items, owner, _strings(table["target"], "target"))
    faults = {
        "user: missing user": _is_null(users),
        "history: missing item in a history": np.bincount(owner[_is_null(items)], minlength=len(table)) > 0,
        "history: empty history": np.bincount(owner, minlength=len(table)) == 0,
    }
    if once:
        first = np.unique(users.dictionary_encode().indices.fill_null(-1).to_numpy(), return_index=True)[1]
        faults["user: duplicate user: an earlier row is the same user's"] = ~np.isin(np.arange(len(table)), first)
    good, wrong_rows = _first_faults(faults, len(table))
    report = [BadRow(int(number[row]), "", column, reason) for row, column, reason in wrong_rows]
    kept = good[owner]
    users = users.take(pa.array(owner[kept]))
    return Events(users, items.filter(pa.array(kept)), None, None, len(table) + len(bad), [*bad, *report])


def _with_targets(items: pa.Array, owner: np.ndarray, targets: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Every row's items with its target after them; a missing target is no item."""
    rows = np.arange(len(targets))[~_is_null(targets)]
    owner = np.concatenate([owner, rows])
    order = np.argsort(owner, kind="stable")
    return pa.concat_arrays([items, targets.take(pa.array(rows))]).take(pa.array(order)), owner[order]


def _first_faults(faults: dict[str, np.ndarray], rows: int) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """(rows,) bool, True where nothing is wrong, and (row, column, reason) where something is: the first of several."""
    good = np.ones(rows, dtype=bool)
    wrong = []
    for fault, mask in faults.items():
        column, _, reason = fault.partition(": ")
        wrong += [(int(row), column, reason) for row in np.flatnonzero(mask & good)]
        good &= ~mask
    return good, wrong


def microseconds(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Times of any type as numbers.

    Dates without a time zone are UTC. Numbers are seconds, or thousandths, millionths or billionths of one where they
    are too large for seconds; texts are such numbers or ISO 8601 dates.

    Args:
        column: N timestamps, dates, numbers or texts.

    Returns:
        (N,) int64 microseconds since 1970, 0 where unknown, and (N,) bool, True where unknown.
    """
    import pandas as pd

    cells = _combined(column)
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        stamps = cells.cast(pa.timestamp("us", getattr(cells.type, "tz", None)), safe=False).cast(pa.int64())
        return pc.fill_null(stamps, 0).to_numpy(), _is_null(cells)
    values = cells.to_pandas()
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    size = np.abs(numbers)
    scale = np.select([size >= limit for limit, _ in _UNITS], [factor for _, factor in _UNITS], 1e6)
    unknown = ~(size * scale <= _LAST * 1e6)  # also of what is no number
    times = np.where(unknown, 0, numbers * scale).astype(np.int64)
    texts = np.isnan(numbers) & values.notna().to_numpy()
    if texts.any():
        stamps = pd.to_datetime(values[texts].astype(str).str.strip(), format="ISO8601", utc=True, errors="coerce")
        unknown[texts] = stamps.isna()
        parsed = stamps.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
        times[texts] = np.where(unknown[texts], 0, parsed)
    return times, unknown


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_null(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return pc.is_null(_combined(column), nan_is_null=True).to_numpy(zero_copy_only=False)


def _strings(column: pa.ChunkedArray | pa.Array, role: str) -> pa.Array:
    """Ids as text without white space around them, null where missing: 12.0 is "12", as for products."""
    column = _combined(column)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise CatalignError(
            f"the log's column of {role}s holds {column.type}, not single values",
            f"name another one: data.interactions.columns.{role}=COLUMN",
        )
    if pa.types.is_floating(column.type):
        whole = pc.equal(column, pc.floor(column))
        numbers = pc.if_else(whole, column, 0.0).cast(pa.int64(), safe=False)
        texts = pc.if_else(whole, numbers.cast(STRING), column.cast(STRING))
        column = pc.if_else(pc.is_null(column, nan_is_null=True), None, texts)
    column = pc.utf8_trim_whitespace(column.cast(STRING))
    return pc.if_else(pc.equal(column, ""), None, column)
