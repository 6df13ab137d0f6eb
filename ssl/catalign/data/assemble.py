"""Finished chunks put together: one array of photos, one table, groups, splits, tokens, the quarantine report."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalign.artifacts import atomic
from catalign.config import ColumnsConfig, DataConfig, InteractionsConfig
from catalign.data import log_files, logs, quarantine, splits
from catalign.data.cells import BadCellError, json_object
from catalign.data.chunks import Part, Plan
from catalign.data.quarantine import BadRow
from catalign.data.sources import Source
from catalign.data.text import Ragged, Vocabulary, load_tokenizer, train_wordpiece
from catalign.errors import CatalignError, unknown

SOME_ROWS = 4096
"""How many rows tell which keys a JSON column has."""


def assemble(folder: Path, plan: Plan, parts: list[Part], config: DataConfig, source: Source) -> dict[str, Any]:
    """Put the chunks together: quarantine, photos, table, groups, splits, tokens, histories.

    Returns:
        What the manifest says of them.
    """
    keep, bad, total = usable(parts)
    quarantine.write(folder / quarantine.REPORT, bad)
    if not total:
        raise CatalignError(f"catalogue {config.name!r} is empty: its source has no rows", "check data.source")
    quarantine.check_share(config.name, bad, total, config.max_bad_share, folder / quarantine.REPORT)
    count = sum(int(mask.sum()) for mask in keep)
    if not count:
        raise CatalignError(f"every row of {config.name!r} is bad", f"see why in {folder / quarantine.REPORT}")
    has_image = _write_images(folder, plan, parts, keep, count)
    table = _write_table(folder, plan, parts, keep)
    _check_keys(table, plan.columns, source)
    divided = _write_splits(folder, table, has_image, plan.columns, config)
    _write_tokens(folder, table, plan.columns, config)
    log = _write_histories(folder, table, config, source, total)
    return {
        "rows": count,
        "source_rows": total,
        "bad_rows": len(bad),
        "bad_kinds": quarantine.counts(bad),
        "divided_groups": divided,
        "histories": log is not None,
        "log": log or None,
        "config": config.model_copy(update={"columns": plan.columns}).model_dump(
            mode="json", exclude={"cache", "workers", "root", "fallback", "fallback_columns"}
        ),
    }


def _check_keys(table: pa.Table, columns: ColumnsConfig, source: Source) -> None:
    """Refuse a key of a JSON column that no product has a value of: it is mistyped."""
    for column, keys in columns.unpack.items():
        for key, name in keys.items():
            if not any(table[f"attribute:{name}"].to_pylist()):
                original = columns.original(column)
                some = next(iter(source.chunks(SOME_ROWS, [original])))[original]
                seen = {str(other) for cell in some for other in _keys(cell, column)}
                remedy = unknown("key", key, seen).remedy
                raise CatalignError(f"data.columns.unpack.{column}: no product has a value of the key {key!r}", remedy)


def _keys(cell: Any, column: str) -> list[Any]:
    try:
        return list(json_object(cell, column))
    except BadCellError:  # in the quarantine report
        return []


def _write_histories(
    folder: Path, table: pa.Table, config: DataConfig, source: Source, total: int
) -> dict[str, Any] | None:
    """Write the log's histories, or else the source's own; returns what was left out, None without histories."""
    log = config.interactions
    if log is not None and log.path is not None:
        events = log_files.read(log)
        quarantine.write(folder / logs.REPORT, events.bad)
        check_log(config, events.bad, events.rows, folder)
        if source.bare:  # its products are the items of this log
            _, histories, facts = logs.of_own_items(events, log)
            histories = histories.select(table["row"].to_numpy(), total)
        else:
            histories, facts = logs.histories(events, table["id"].to_pylist(), log)
        histories.hold_out(log).save(folder)
        return facts
    own = source.histories()
    if own is None:
        if log is not None:
            raise CatalignError(f"{config.name!r} has no histories of its own", "name a log: data.interactions.path")
        return None
    log = log or InteractionsConfig(min_user=1)
    own = own.select(table["row"].to_numpy(), total).core(log.min_user, log.min_item)
    if not len(own):
        raise CatalignError(f"no user of {config.name!r} has {log.min_user} events", "lower data.interactions.min_user")
    own.hold_out(log).save(folder)
    return {}


def check_log(config: DataConfig, bad: list[BadRow], rows: int, folder: Path) -> None:
    """Stop when too many rows of the log are bad, as :func:`catalign.data.quarantine.check_share` does."""
    assert config.interactions is not None
    quarantine.check_share(str(config.interactions.path), bad, rows, config.max_bad_share, folder / logs.REPORT)


def usable(parts: list[Part]) -> tuple[list[np.ndarray], list[BadRow], int]:
    """Per part the (n,) rows kept; all bad rows, repeated ids among them; and the number of source rows."""
    bad: list[BadRow] = []
    keep: list[np.ndarray] = []
    total = 0
    first: dict[str, int] = {}
    for part in parts:
        rows, wrong = part.report()
        total += rows
        bad += wrong
        table = part.table(["id", "row"])
        mask = np.ones(len(table), dtype=bool)
        for place, (identity, row) in enumerate(zip(table["id"].to_pylist(), table["row"].to_pylist(), strict=True)):
            if first.setdefault(identity, row) != row:
                mask[place] = False
                bad.append(BadRow(row, identity, "id", f"duplicate id: row {first[identity]} has it already"))
        keep.append(mask)
    return keep, bad, total


def _write_images(folder: Path, plan: Plan, parts: list[Part], keep: list[np.ndarray], count: int) -> np.ndarray:
    """Write ``images.npy`` (N, H, W, 3) and ``has_image.npy``; rows without a photo are black and masked."""
    flags = []
    with atomic(folder / "images.npy") as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *plan.image_size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for part, mask in zip(parts, keep, strict=True):  # written, not mapped: resident memory stays that of a chunk
            has_image = part.table(["has_image"])["has_image"].to_numpy()
            pixels = np.zeros((len(mask), *plan.image_size, 3), dtype=np.uint8)
            pixels[has_image] = part.images()
            pixels[mask].tofile(file)
            flags.append(has_image[mask])
    np.save(folder / "has_image.npy", np.concatenate(flags))
    return np.concatenate(flags)


def _write_table(folder: Path, plan: Plan, parts: list[Part], keep: list[np.ndarray]) -> pa.Table:
    """Write ``table.arrow``: ids, source rows, texts, attributes. Returns it memory-mapped."""
    path = folder / "table.arrow"
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), plan.schema()) as writer:
        for start in range(0, len(parts), 16):  # few, larger batches make look-ups faster
            some = zip(parts[start : start + 16], keep[start : start + 16], strict=True)
            table = pa.concat_tables([part.table().filter(pa.array(mask)) for part, mask in some]).combine_chunks()
            writer.write_table(table)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _write_splits(
    folder: Path, table: pa.Table, has_image: np.ndarray, columns: ColumnsConfig, config: DataConfig
) -> int:
    """Write ``groups.npy`` and ``splits.npy``; returns the number of groups divided between splits."""
    if columns.group is not None:
        own = enumerate(table["group"].to_pylist())  # a row without a group is a product of its own
        groups = splits.number(np.array([f"row {row}" if value is None else f"={value}" for row, value in own]))
    else:
        images = np.load(folder / "images.npy", mmap_mode="r")
        titles = table[f"text:{next(iter(columns.text))}"]
        near = config.split.near_duplicates
        groups = splits.find_groups((title.as_py() for title in titles), images, has_image, near=near)
    if columns.split is not None:
        names = splits.given(table["split"].to_pylist(), columns.split)
    else:
        names = splits.leak_aware(groups, {"val": config.split.val, "test": config.split.test}, config.split.seed)
    np.save(folder / "groups.npy", groups)
    np.save(folder / "splits.npy", names)
    return splits.warn_divided(groups, names)


def _write_tokens(folder: Path, table: pa.Table, columns: ColumnsConfig, config: DataConfig) -> None:
    """Write the vocabulary, learned from the training split alone, and every field's tokens."""
    train = np.load(folder / "splits.npy") == "train"
    if config.tokenizer is not None:
        vocabulary = load_tokenizer(config.tokenizer)
    else:
        vocabulary = _train_vocabulary(table, columns, train, config.vocabulary_size)
    tokens = []
    for place, field in enumerate(columns.text):
        _encode(vocabulary, _texts(table, field), config.max_tokens, folder / ".tokens").save(folder, f"tokens{place}")
        tokens.append(Ragged.load(folder, f"tokens{place}"))
    (folder / ".tokens").unlink()
    vocabulary.counted(tokens, np.flatnonzero(train)).save(folder)


def _encode(vocabulary: Vocabulary, texts: Iterator[str], max_tokens: int, path: Path) -> Ragged:
    """Tokenise some texts at a time; the tokens lie in a file, not in memory."""
    lengths = [np.zeros(1, dtype=np.int64)]
    with path.open("wb") as file:
        # No token kept starts beyond these characters: long texts are cut before they are tokenised, not only after.
        while some := [text[: 32 * max_tokens] for text in islice(texts, 4096)]:
            rows = vocabulary.encode(some, max_tokens)
            lengths.append(np.array([len(row) for row in rows]))
            np.concatenate(rows).tofile(file)
    values = np.memmap(path, np.int32, "r") if path.stat().st_size else np.zeros(0, dtype=np.int32)
    return Ragged(values, np.cumsum(np.concatenate(lengths)))


def _train_vocabulary(table: pa.Table, columns: ColumnsConfig, train: np.ndarray, size: int) -> Vocabulary:
    def seen() -> Iterator[str]:
        for field in columns.text:
            yield from (text for text, is_train in zip(_texts(table, field), train, strict=True) if is_train)

    if not any(seen()):
        alphabet = "a b c d e f g h i j k l m n o p q r s t u v w x y z"  # photos alone: there must still be tokens
        return train_wordpiece([alphabet], size, min_frequency=1)
    return train_wordpiece(seen(), size)


def _texts(table: pa.Table, field: str) -> Iterator[str]:
    for batch in table.column(f"text:{field}").chunks:
        yield from batch.to_pylist()
