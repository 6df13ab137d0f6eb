"""Logs of every format, and what is said of files that are not right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalign.config import InteractionsConfig
from catalign.data.events import Events
from catalign.data.log_files import fingerprint, read
from catalign.errors import CatalignError

EVENTS = [("u1", "a", 10), ("u2", "b", 20), ("u1", "c", 5), ("u2", "a", 30)]
COLUMNS = ["user_id", "item_id", "timestamp"]


def log(path: Path, content: str | bytes, **settings: Any) -> Events:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(InteractionsConfig(path=str(path), **settings))


def pairs(events: Events) -> list[tuple[str, str]]:
    return list(zip(events.users.to_pylist(), events.items.to_pylist(), strict=True))


def text(rows: list[tuple[Any, ...]], delimiter: str = ",") -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


WRITERS: dict[str, Callable[[Path], object]] = {
    "csv": lambda path: path.write_text(text([tuple(COLUMNS), *EVENTS])),
    "tsv": lambda path: path.write_text(text([tuple(COLUMNS), *EVENTS], "\t")),
    "parquet": lambda path: write_parquet(path, dict(zip(COLUMNS, map(list, zip(*EVENTS, strict=True)), strict=True))),
    "jsonl": lambda path: path.write_text(
        "\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in EVENTS)
    ),
    "inter": lambda path: path.write_text(
        text([("user_id:token", "item_id:token", "timestamp:float"), *((u, i, f"{t}.0") for u, i, t in EVENTS)], "\t")
    ),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_table_gives_the_same_events(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"log.{ending}"
    WRITERS[ending](path)
    events = read(InteractionsConfig(path=str(path)))
    assert pairs(events) == [(user, item) for user, item, _ in EVENTS]
    assert events.times is not None
    assert events.times.tolist() == [time * 1_000_000 for _, _, time in EVENTS]
    assert (events.kinds, events.rows, events.bad) == (None, 4, [])


HISTORIES: dict[str, Callable[[Path], object]] = {
    "txt": lambda path: path.write_text("u1 a b  c\r\n\n  u2\tb a\n"),
    "csv": lambda path: path.write_text("user,history,target\nu1,a b,c\nu2,b a,\n"),
    "parquet": lambda path: write_parquet(
        path, {"user": ["u1", "u2"], "history": [["a", "b"], ["b"]], "target": ["c", "a"]}
    ),
    "jsonl": lambda path: path.write_text(
        '{"user": "u1", "history": ["a", "b", "c"]}\n{"user": "u2", "history": "b  a"}'
    ),
    "inter": lambda path: path.write_text(
        "user_id:token\titem_id_list:token_seq\titem_id:token\nu1\ta b\tc\nu2\tb\ta\n"
    ),
}


@pytest.mark.parametrize("ending", HISTORIES)
def test_every_kind_of_table_of_histories_gives_the_same_events(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"log.{ending}"
    HISTORIES[ending](path)
    events = read(InteractionsConfig(path=str(path)))
    assert pairs(events) == [("u1", "a"), ("u1", "b"), ("u1", "c"), ("u2", "b"), ("u2", "a")]
    assert (events.times, events.kinds, events.rows, events.bad) == (None, None, 2, [])


WORDS = st.text(st.characters(categories=("L", "N"), exclude_characters="\x85"), min_size=1, max_size=5)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=5)), min_size=1, max_size=8))
def test_lines_are_read_word_by_word(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log.txt"
    events = log(path, "\n".join(" ".join([user, *items]) for user, items in lines))
    assert pairs(events) == [(user, item) for user, items in lines for item in items]
    assert events.rows == len(lines)


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=6).filter(
    lambda cell: cell == cell.strip() and cell.strip("\ufeff\u2028\u2029 \xa0") == cell
)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_any_text_is_an_id(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    import csv

    folder = tmp_path_factory.mktemp("ids")
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user", "item"), *rows])
    (folder / "log.jsonl").write_text("\n".join(json.dumps({"user": u, "item": i}) for u, i in rows), "utf-8")
    write_parquet(folder / "log.parquet", {"user": [u for u, _ in rows], "item": [i for _, i in rows]})
    for ending in ("csv", "jsonl", "parquet"):
        assert pairs(read(InteractionsConfig(path=str(folder / f"log.{ending}")))) == rows, ending


def test_columns_may_be_named(tmp_path: Path) -> None:
    content = "who;what;when;how;item\nu1;a;1;buy;x\nu1;b;2;view;y\n"
    columns = {"user": "who", "item": "what", "time": "when", "event": "how"}
    events = log(tmp_path / "log.data", content, format="csv", delimiter=";", columns=columns)
    assert pairs(events) == [("u1", "a"), ("u1", "b")]
    assert events.kinds is not None
    assert events.kinds.to_pylist() == ["buy", "view"]


def test_numbers_are_ids_as_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "log.parquet", {"user": [1, 2, 3], "item": [7.0, 2.5, np.nan]})
    events = read(InteractionsConfig(path=str(path)))
    assert pairs(events) == [("1", "7"), ("2", "2.5")]
    assert [(bad.row, bad.reason) for bad in events.bad] == [(2, "missing item")]
    codes = pa.array(["x", "y", "x"]).dictionary_encode()
    path = write_parquet(tmp_path / "codes.parquet", {"user": codes, "item": pa.array([None, 1, 2])})
    assert pairs(read(InteractionsConfig(path=str(path)))) == [("y", "1"), ("x", "2")]
    mixed = '{"user": 1, "item": "a"}\n{"user": "1", "item": 2.0}'
    assert pairs(log(tmp_path / "log.jsonl", mixed)) == [("1", "a"), ("1", "2")]


def test_a_folder_of_logs_is_one(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.csv").write_text("user,item\nu3,c\n,d\n")
    (tmp_path / "parts" / "0.csv").write_text("user,item\nu1,a\nu2\nu2,b\n")
    (tmp_path / "parts" / "2.csv").write_text("")
    events = read(InteractionsConfig(path=str(tmp_path / "parts")))
    assert pairs(events) == [("u1", "a"), ("u2", "b"), ("u3", "c")]
    assert [(bad.row, bad.reason) for bad in events.bad] == [
        (1, "malformed: 1 cells, the header has 2, row 1 of 0.csv"),
        (4, "missing user: row 1 of 1.csv"),
    ]
    (tmp_path / "parts" / "3.csv").write_text("user,item,time\nu1,a,1\n")
    with pytest.raises(CatalignError, match="differ in their columns"):
        read(InteractionsConfig(path=str(tmp_path / "parts")))


def test_rows_that_are_no_events_are_told(tmp_path: Path) -> None:
    content = 'user,item,time\nu1,a,1\n\nu2\n,b,2\n" ",,3\nu3,,4\nu4,"d\nd",soon\nu5,e,\nu6,f,5\n'
    events = log(tmp_path / "log.csv", content)
    assert pairs(events) == [("u1", "a"), ("u6", "f")]
    assert events.rows == 8
    assert sorted((bad.row, bad.id, bad.column, bad.reason) for bad in events.bad) == [
        (1, "", "", "malformed: 1 cells, the header has 3"),
        (2, "b", "user", "missing user"),
        (3, "", "user", "missing user"),
        (4, "", "item", "missing item"),
        (5, "d\nd", "time", "unparsable time: 'soon' is neither an ISO date nor seconds since 1970"),
        (6, "e", "time", "missing time"),
    ]
    lines = '{"user": "u1", "item": "a"}\n{"user": \n[1]\n{"user": "u2"}\n{"user": ["u3"], "item": "b"}\n'
    events = log(tmp_path / "log.jsonl", lines)
    assert pairs(events) == [("u1", "a")]
    assert {bad.row: bad.reason.partition(":")[0] for bad in events.bad} == {
        1: "malformed",
        2: "malformed",
        3: "missing item",
        4: "wrong type",
    }


def test_histories_that_are_none_are_told(tmp_path: Path) -> None:
    columns = {
        "user": ["u1", "u2", None, "u1", "u4", "u5", "u6"],
        "history": [["a", "b"], [], ["a"], ["c"], ["a", None], None, []],
        "target": ["c", None, "b", "d", "e", None, "f"],
    }
    events = read(InteractionsConfig(path=str(write_parquet(tmp_path / "log.parquet", columns))))
    assert pairs(events) == [("u1", "a"), ("u1", "b"), ("u1", "c"), ("u6", "f")]
    assert {bad.row: bad.reason.partition(":")[0] for bad in events.bad} == {
        1: "empty history",
        2: "missing user",
        3: "duplicate user",
        4: "missing item in a history",
        5: "empty history",
    }
    events = log(tmp_path / "log.txt", "u1 a\nu2\nu1 b c\n")
    assert pairs(events) == [("u1", "a"), ("u1", "b"), ("u1", "c")], "a user of text lines may go on"
    assert [(bad.row, bad.reason) for bad in events.bad] == [(1, "empty history")]
    printed = log(tmp_path / "log.csv", "user,history\nu1,\"['a', 'b']\"\nu2,[1 2]\nu3,[]\n")
    assert pairs(printed) == [("u1", "a"), ("u1", "b"), ("u2", "1"), ("u2", "2")]
    texts = log(tmp_path / "log.csv", 'user,history\nu1,\nu2,"  "\nu3,a b\n')
    assert pairs(texts) == [("u3", "a"), ("u3", "b")]
    assert [bad.reason for bad in texts.bad] == ["empty history"] * 2


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("log.csv", "", r"log.csv is empty"),
        ("log.csv", "user,item\n", r"log.csv is empty"),
        ("log.jsonl", "\n", r"log.jsonl is empty"),
        ("log.txt", " \n\n", r"log.txt is empty"),
        ("log.inter", "", r"log.inter is empty"),
        ("log.xlsx", "x", r"unknown kind of log 'log.xlsx'\n.*data.interactions.format=csv"),
        (
            "log.csv",
            "user,product\nu,a\n",
            r"no column of items \(item or item_id\)\n.*columns.item=COLUMN.*user, product",
        ),
        ("log.csv", "client,item\nu,a\n", r"no column of users \(user or user_id\)\n.*there are: client, item"),
        ("log.csv", "user,user\nu,a\n", r"column 'user' is there twice"),
        ("log.csv", b"user,item\n" + b"u,a\n" * 9999 + b"u,\xfc\n", r"log.csv cannot be read.*\n.*UTF-8"),
        ("log.csv", "user,Stück\nu,a\n".encode("latin-1"), r"log.csv is not UTF-8"),
        ("log.txt", "u Mütze".encode("latin-1"), r"log.txt is not UTF-8"),
        ("log.inter", "user_id\titem_id\nu\ta\n", r"column 'user_id' has no type.*\n.*format=csv"),
        ("log.csv", "user;item\nu;a\n", r"""'data.interactions.delimiter=";"'"""),
        ("log.csv", "user\titem\nu\ta\n", r"name it \.tsv"),
        ("log.txt", "user,item\nu,a\n", r"commas, not blanks.*\n.*format=csv"),
        ("log.csv.gz", b"\x1f\x8b\xff", r"unknown kind of log"),
        ("log.txt", "u a 1600053526\nv a 1600053527\nu b 1600053528\n", r"looks like one event per line.*\n.*\.tsv"),
        ("log.parquet", "PAR1", r"log.parquet is not a whole Parquet file"),
    ],
)
def test_wrong_files_get_a_sentence_that_helps(name: str, content: str | bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CatalignError, match=problem):
        log(tmp_path / name, content)


def test_wrong_settings_get_a_sentence_that_helps(tmp_path: Path) -> None:
    with pytest.raises(CatalignError, match=r"the log .*absent.csv does not exist\n.*data.interactions.path"):
        read(InteractionsConfig(path=str(tmp_path / "absent.csv")))
    with pytest.raises(CatalignError, match=r"no log in the folder"):
        read(InteractionsConfig(path=str(tmp_path)))
    with pytest.raises(CatalignError, match=r"columns.time names column 'tme', which .*\n.*did you mean 'time'"):
        log(tmp_path / "log.csv", "user,item,time\nu,a,1\n", columns={"time": "tme"})
    with pytest.raises(CatalignError, match=r"delimiter '::' is not a single character"):
        log(tmp_path / "log.dat", "u::a\n", format="csv", delimiter="::")
    with pytest.raises(CatalignError, match=r"not UTF-8 text.*\n.*unpack it"):
        log(tmp_path / "log.csv.gz", b"\x1f\x8b\xff", format="csv")
    nested = write_parquet(tmp_path / "log.parquet", {"user": ["u"], "item": [["a"]]})
    with pytest.raises(CatalignError, match=r"column of items holds list.*\n.*columns.item=COLUMN"):
        read(InteractionsConfig(path=str(nested)))


def test_the_fingerprint_follows_content_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\nu,a\n")
    base = InteractionsConfig(path=str(path))
    copy = tmp_path / "copy.csv"
    copy.write_text("user,item\nu,a\n")
    assert fingerprint(InteractionsConfig(path=str(copy))) == fingerprint(base)
    copy.write_text("user,item\nu,b\n")
    prints = [fingerprint(InteractionsConfig(path=str(copy))), fingerprint(base)]
    for changed in ({"min_user": 1}, {"split": "cold_items"}, {"columns": {"user": "item"}}, {"events": ["a"]}):
        prints.append(fingerprint(InteractionsConfig(path=str(path), **changed)))
    assert len(set(prints)) == 6
