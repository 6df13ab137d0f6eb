"""From the events of a log to clean histories, and catalogues whose products are the items of a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalign.artifacts import checksum, digest, read_json
from catalign.config import InteractionsConfig
from catalign.data import log_files, quarantine
from catalign.data.events import Events
from catalign.data.holdout import TRAIN
from catalign.data.interactions import Histories
from catalign.data.ragged import Ragged
from catalign.data.sources import Chunk, Source, existing
from catalign.errors import CatalignError, unknown
from catalign.registry import register

REPORT = "interactions_quarantine.csv"


def histories(events: Events, ids: Sequence[str], config: InteractionsConfig) -> tuple[Histories, dict[str, Any]]:
    """Every user's events in the order of time: those of the catalogue's products, of users with enough of them.

    Args:
        events: What was read.
        ids: The catalogue's products; the histories number them by their places here.
        config: Which events are left out.

    Returns:
        The histories, all training, and for the manifest what was left out.

    Raises:
        CatalignError: No event is left, a kind of event is unknown or, where that is to stop, an item.
    """
    rows = pc.index_in(events.items, value_set=pa.array(ids, events.items.type))
    is_known, is_counted = rows.is_valid().to_numpy(zero_copy_only=False), _of_kinds(events, config)
    lacking = events.items.filter(pa.array(is_counted & ~is_known))
    lacking_items = lacking.unique()
    examples = lacking_items[:5].to_pylist()
    if len(lacking) and config.unknown_items == "stop":
        raise CatalignError(
            f"{len(lacking)} events of {config.path} are of {len(lacking_items)} items that the catalogue lacks: "
            f"{', '.join(map(repr, examples))}",
            "leave them out with data.interactions.unknown_items=leave_out",
        )
    ordered, repeated, unsorted = _ordered(events, rows, np.flatnonzero(is_counted & is_known), config)
    made = ordered.core(config.min_user, config.min_item)
    facts = {
        "rows": events.rows,
        "bad_rows": len(events.bad),
        "bad_kinds": quarantine.counts(events.bad),
        "left_out": {
            "other_kinds": int((~is_counted).sum()),
            "unknown_items": len(lacking),
            "repeats": repeated,
            "too_few": len(ordered.items.values) - len(made.items.values),
        },
        "unknown_items": {"count": len(lacking_items), "examples": examples},
        "users_left_out": len(ordered) - len(made),
        "unsorted_users": unsorted,
        "timed": made.times is not None,
        **config.model_dump(include={"min_user", "min_item"}),
    }
    if not len(made):
        raise _nothing_left(events, facts, ids, config)
    return made, facts


def of_own_items(events: Events, config: InteractionsConfig) -> tuple[list[str], Histories, dict[str, Any]]:
    """As :func:`histories`, where the items of the log that are left are the products; these come first.

    Products are in the order of their ids: numbers by size, then words.
    """
    ids = sorted(events.items.unique().to_pylist(), key=_by_size)
    made, facts = histories(events, ids, config)
    kept = np.unique(made.items.values)
    return [ids[row] for row in kept], made.select(kept, len(ids)), facts


def _by_size(item: str) -> tuple[bool, int, str]:
    is_number = item.isdecimal() and len(item) < 20
    return not is_number, int(item) if is_number else 0, item


def _ordered(
    events: Events, rows: pa.Array, kept: np.ndarray, config: InteractionsConfig
) -> tuple[Histories, int, int]:
    """Some events by user and time; the number of repeated ones left out, and of users whose events were not so."""
    users = events.users.take(pa.array(kept)).dictionary_encode()  # numbered by first appearance
    user, item = users.indices.to_numpy(), rows.take(pa.array(kept)).to_numpy()
    time = None if events.times is None else events.times[kept]
    order = np.argsort(user, kind="stable")
    unsorted = 0
    if time is not None:
        goes_back = (np.diff(time[order]) < 0) & (np.diff(user[order]) == 0)
        unsorted = len(np.unique(user[order][1:][goes_back]))
        order = np.lexsort((time, user))  # stable: events of one moment stay in the file's order
    user, item, time = user[order], item[order], None if time is None else time[order]
    again = np.zeros(len(user), dtype=bool)
    if config.repeats == "drop" or (config.repeats is None and time is not None):
        again = _repeated([user, item] if time is None else [user, item, time])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user[~again], minlength=len(users.dictionary)))])
    items = Ragged(item[~again].astype(np.int32), offsets.astype(np.int64))
    times = None if time is None else Ragged(time[~again] // 1_000_000, items.offsets)
    every = Histories(users.dictionary.to_pylist(), items, items.of_each(TRAIN, np.uint8), times)
    return every, int(again.sum()), unsorted


def _repeated(keys: list[np.ndarray]) -> np.ndarray:
    """(E,) bool, True where an earlier event has all the same keys."""
    order = np.lexsort(keys)
    again = np.zeros(len(order), dtype=bool)
    again[order[1:]] = np.all([key[order[1:]] == key[order[:-1]] for key in keys], axis=0)
    return again


def in_words(facts: dict[str, Any]) -> str:
    """One line on what :func:`histories` counted."""
    bad = f"{facts['bad_rows']:,} bad rows, see {REPORT}" if facts["bad_rows"] else "no bad rows"
    left_out = ", ".join(_left_out(facts)) or "none"
    by_time = f"; put in the order of time for {facts['unsorted_users']:,} users" if facts["unsorted_users"] else ""
    untimed = "" if facts.get("timed", True) else "; no column of times, so the file's order counts"
    return f"{bad}; events left out: {left_out}{by_time}{untimed}"


def _left_out(facts: dict[str, Any]) -> list[str]:
    """Why events were left out, and how many."""
    unknown_items = facts["unknown_items"]
    examples = ", ".join(unknown_items["examples"])
    min_item = f" or of items with fewer than {facts['min_item']}" if facts["min_item"] > 1 else ""
    reasons = {
        "other_kinds": "of other kinds",
        "unknown_items": f"of {unknown_items['count']:,} items that the catalogue lacks ({examples})",
        "repeats": "repeated",
        "too_few": f"of users with fewer than {facts['min_user']}{min_item} ({facts['users_left_out']:,} users)",
    }
    return [f"{count:,} {reasons[key]}" for key, count in facts["left_out"].items() if count]


def _of_kinds(events: Events, config: InteractionsConfig) -> np.ndarray:
    """(E,) bool, whether an event is of a kind that counts."""
    if config.events is None:
        return np.ones(len(events.items), dtype=bool)
    if events.kinds is None:
        raise CatalignError(
            f"data.interactions.events is given, but {config.path} has no column of kinds of event",
            "name it: data.interactions.columns.event=COLUMN",
        )
    there = events.kinds.unique().to_pylist()
    for kind in config.events:
        if kind not in there:
            raise unknown(f"kind of event (data.interactions.events, {config.path})", kind, there)
    return pc.is_in(events.kinds, value_set=pa.array(config.events, events.kinds.type)).to_numpy(zero_copy_only=False)


def _nothing_left(
    events: Events, facts: dict[str, Any], ids: Sequence[str], config: InteractionsConfig
) -> CatalignError:
    reasons = _left_out(facts)
    if events.bad:
        first = events.bad[0]
        reasons.append(f"{len(events.bad)} of {events.rows} rows bad (row {first.row}, {first.column}: {first.reason})")
    remedy = "see data.interactions: columns, events, min_user, min_item"
    if examples := facts["unknown_items"]["examples"]:
        remedy = f"the log's ids are like {examples[0]!r}, the catalogue's like {ids[0]!r}; {remedy}"
    return CatalignError(f"no event of the log {config.path} is left: {', '.join(reasons)}", remedy)


@register("source", "log")
class Log(Source):
    """The items of a log as products, for logs whose items have neither texts nor photos.

    Columns: ``id``, ``title`` (empty) and ``attributes``: the item's attribute ids with one blank between, where a file
    of them is named. Products are what :func:`of_own_items` says.

    Args:
        interactions: The log, ``${data.interactions}``.
        attributes: A JSON file, a list of attribute ids for every item.
    """

    bare = True

    def __init__(self, *, interactions: InteractionsConfig, attributes: str | None = None) -> None:
        self.config = interactions
        self.attributes = existing(attributes, "data.source.attributes") if attributes is not None else None

    def columns(self) -> list[str]:
        """Those named above."""
        return ["id", "title", *(["attributes"] if self.attributes is not None else [])]

    def fingerprint(self) -> str:
        """A hash of the log, of how it is cleaned, and of the attributes."""
        return digest([log_files.fingerprint(self.config), self.attributes and checksum(self.attributes)], 64)

    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Ids and what is known of them."""
        attributes = self._attributes()
        ids = of_own_items(log_files.read(self.config), self.config)[0]
        for start in range(0, len(ids), size):
            some = ids[start : start + size]
            rows: Chunk = {
                "id": list(some),
                "title": [""] * len(some),
                "attributes": [attributes.get(item, "") for item in some],
            }
            yield {column: rows[column] for column in columns}

    def _attributes(self) -> dict[str, str]:
        if self.attributes is None:
            return {}
        known = read_json(self.attributes)
        if not isinstance(known, dict) or not all(isinstance(some, list) for some in known.values()):
            raise CatalignError(f"{self.attributes} is not a JSON object of lists", 'it is like {"item": [3, 17]}')
        return {item: " ".join(map(str, some)) for item, some in known.items()}
