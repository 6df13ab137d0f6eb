"""Preparation: bad rows, caching, going on after a stop, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_images import bomb, encoded

from catalign.artifacts import read_json
from catalign.config import ColumnsConfig, DataConfig
from catalign.data import chunks, prepare
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError

COLOURS = ["red", "blue", "green", "black"]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8)


def photo(number: int) -> bytes:
    return encoded(pixels(number))


def products(count: int = 40) -> dict[str, list[Any]]:
    return {
        "id": [f"p{number}" for number in range(count)],
        "title": [f"{COLOURS[number % 4]} shoe number {number}" for number in range(count)],
        "image": [photo(number) for number in range(count)],
    }


def config(folder: Path, table: dict[str, list[Any]], **settings: Any) -> DataConfig:
    pq.write_table(pa.table(table), folder / "table.parquet")
    source = {"name": "parquet", "path": str(folder / "table.parquet")}
    defaults = {"name": "shop", "source": source, "image_size": (20, 16), "workers": 1, "cache": str(folder / "cache")}
    return DataConfig(**{**defaults, "vocabulary_size": 200, "max_bad_share": 0.5, **settings})


def sums(path: Path) -> dict[str, str]:
    """Checksums of a prepared folder, apart from the tokenizer's JSON."""
    return {name: file["sha256"] for name, file in read_json(path / "manifest.json")["files"].items()}


def test_bad_rows_are_listed_with_row_and_reason(tmp_path: Path) -> None:
    table = products()
    table["image"][1] = b""
    table["image"][2] = b"not a photo"
    table["image"][3] = photo(3)[:-700]
    table["image"][4] = bomb()
    table["id"][5] = "p0"
    table["id"][6] = None
    table["image"][7] = table["title"][7] = None
    table["image"][8] = None  # only absent: kept
    table["title"][9] = "  <br> "  # no text, but a photo: kept
    shop = Catalogue.load(config(tmp_path, table), progress=False)
    found = {bad.row: (bad.id, bad.column, bad.reason.split(":")[0]) for bad in shop.quarantine}
    assert found == {
        1: ("p1", "image", "zero bytes"),
        2: ("p2", "image", "undecodable"),
        3: ("p3", "image", "truncated"),
        4: ("p4", "image", "decompression bomb"),
        5: ("p0", "id", "duplicate id"),
        6: ("", "id", "missing id"),
        7: ("p7", "title", "missing text"),
    }
    assert len(shop) == 33
    assert not shop.has_image[shop.row("p8")]
    assert not shop.has_text[shop.row("p9")]
    assert shop.images[shop.row("p8")].max() == 0
    assert np.array_equal(shop.images[shop.row("p10")], pixels(10))
    assert shop.manifest["source_rows"] == 40
    assert shop.manifest["bad_kinds"]["image: zero bytes"] == 1
    assert "7 rows, see" in repr(shop)


@pytest.mark.parametrize(("column", "cell"), [("title", 7), ("title", ["a"]), ("id", {"a": 1}), ("colour", [1, 2])])
def test_cells_of_the_wrong_type(column: str, cell: object, tmp_path: Path) -> None:
    row = {"id": "a", "title": "t", "image": photo(0), "colour": "red", column: cell}
    columns = ColumnsConfig(attributes=["colour"])
    chunks.process(0, 100, {name: [value] for name, value in row.items()}, chunks.Plan(columns, (8, 8), None, tmp_path))
    rows, bad = chunks.Part(tmp_path, 0).report()
    assert rows == 1
    assert (bad[0].row, bad[0].column) == (100, column)
    assert bad[0].reason.startswith("wrong type")


def test_too_many_bad_rows_stop(tmp_path: Path) -> None:
    table = products()
    table["image"][3] = table["image"][4] = table["image"][5] = b"x"
    with pytest.raises(
        CatalignError, match=r"3 of 40 rows of 'shop' are bad \(7.5%, the limit is 5.0%\): row 3 "
    ) as error:
        prepare.prepare(config(tmp_path, table, max_bad_share=0.05), progress=False)
    assert "quarantine.csv" in str(error.value)
    assert "data.max_bad_share=0.08" in str(error.value)
    report = next(tmp_path.glob("cache/shop-*/quarantine.csv"))
    assert len(report.read_text().splitlines()) == 4
    assert len(Catalogue.load(config(tmp_path, table, max_bad_share=0.08), progress=False)) == 37
    with pytest.raises(CatalignError, match="3 of 40"):  # the cache does not outwit a stricter limit
        Catalogue.load(config(tmp_path, table, max_bad_share=0.05), progress=False)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    empty = {"id": pa.array([], pa.string()), "title": pa.array([], pa.string()), "image": pa.array([], pa.binary())}
    with pytest.raises(CatalignError, match="'shop' is empty"):
        prepare.prepare(config(tmp_path, empty), progress=False)
    broken = {**products(3), "image": [b"x"] * 3}
    with pytest.raises(CatalignError, match="every row of 'shop' is bad"):
        prepare.prepare(config(tmp_path, broken, max_bad_share=1.0), progress=False)


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    shop = config(tmp_path, products())
    for columns, problem, remedy in [
        (ColumnsConfig(text={"titel": 1.0}), "data.columns.text names column 'titel'", "did you mean 'title'"),
        (ColumnsConfig(image="photo"), "data.columns.image names column 'photo'", "data.columns.image=null"),
        (ColumnsConfig(attributes=["colour"]), "data.columns.attributes names column 'colour'", "id, image, title"),
        (ColumnsConfig(rename={"ID": "id"}), "data.columns.rename names column 'ID'", "known: id, image, title"),
        (
            ColumnsConfig(attributes=["neck"], unpack={"more": {"Neck": "neck"}}),
            "columns.unpack names column 'more'",
            "id, image, title",
        ),
        (
            ColumnsConfig(attributes=["title"], unpack={"id": {"Neck": "title"}}),
            "makes a column 'title', which the source has",
            "choose",
        ),
    ]:
        with pytest.raises(CatalignError, match=problem) as error:
            prepare.prepare(shop.model_copy(update={"columns": columns}), progress=False)
        assert remedy in str(error.value)


@pytest.mark.parametrize("kind", ["text", "struct"])
def test_keys_of_a_json_column_are_attributes(tmp_path: Path, kind: str) -> None:
    table = products(4)
    found: list[Any] = [{"Neck": "Round", "Size": 4}, {"Neck": "NA", "Size": None}, {"Size": 2.5}, None]
    table["more"] = [json.dumps(cell) if kind == "text" and cell else cell for cell in found]
    columns = ColumnsConfig(
        text={"title": 1.0, "facts": 0.0},
        attributes=["neck", "size"],
        joined={"facts": ["neck", "size"]},
        rename={"more": "extra"},
        unpack={"extra": {"Neck": "neck", "Size": "size"}},
    )
    shop = Catalogue.load(config(tmp_path, table, columns=columns), progress=False)
    assert shop.attributes["neck"].tolist() == ["Round", "", "", ""]
    assert shop.attributes["size"].tolist() == ["4", "", "2.5", ""]
    assert list(shop.text("facts")) == ["Round, 4", "", "2.5", ""]


def test_cells_that_are_no_json_object_are_bad_rows(tmp_path: Path) -> None:
    table = products(80)
    deep = "[" * 100_000
    given = ['{"Neck": "V"}', '{"Neck"', "[1]", '{"Neck": ["V", "Round"]}', deep, "null", "NA", '{"Neck": null}']
    table["more"] = given + [""] * 72
    columns = ColumnsConfig(attributes=["neck"], unpack={"more": {"Neck": "neck"}})
    shop = Catalogue.load(config(tmp_path, table, columns=columns), progress=False)
    assert [(bad.row, bad.id, bad.column, bad.reason.split(":")[0]) for bad in shop.quarantine] == [
        (1, "p1", "more", "malformed JSON"),
        (2, "p2", "more", "wrong type"),
        (3, "p3", "neck", "wrong type"),
        (4, "p4", "more", "malformed JSON"),
    ]


def test_a_key_that_no_product_has_is_mistyped(tmp_path: Path) -> None:
    table = products(4)
    table["specs"] = ['{"Neck": "V", "Sleeve": "Long"}', "{}", "", '{"Neck": null}']
    columns = ColumnsConfig(attributes=["neck"], rename={"specs": "more"}, unpack={"more": {"Nekc": "neck"}})
    with pytest.raises(CatalignError, match="more: no product has a value of the key 'Nekc'") as error:
        prepare.prepare(config(tmp_path, table, columns=columns), progress=False)
    assert "did you mean 'Neck'? known: Neck, Sleeve" in str(error.value)


def test_a_config_keeps_the_fingerprint_it_always_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = config(tmp_path, products(4))
    source, columns = prepare.open_source(shop)
    monkeypatch.setattr(type(source), "fingerprint", lambda self: "source")
    found = prepare.fingerprint(source, columns, shop)
    assert found == "47af91e59c03", "catalogues that people have prepared would be prepared again"
    unpacked = ColumnsConfig(attributes=["b"], unpack={"title": {"a": "b"}})
    assert prepare.fingerprint(source, unpacked, shop) != found


def test_stopped_and_continued_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHUNK_ROWS", 8)
    table = products()
    table["image"][20] = b"x"
    whole = prepare.prepare(config(tmp_path, table, cache=str(tmp_path / "whole")), progress=False)
    done: list[int] = []

    def stopping(number: int, *rest: Any) -> int:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(number)
        return chunks.process(number, *rest)

    monkeypatch.setattr(prepare, "process", stopping)
    shop = config(tmp_path, table)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(shop, progress=False)
    monkeypatch.setattr(prepare, "process", lambda number, *rest: done.append(number) or chunks.process(number, *rest))
    continued = prepare.prepare(shop, progress=False)
    assert done == [0, 1, 2, 3, 4]  # nothing twice
    assert sums(continued) == sums(whole)
    assert not list((tmp_path / "cache").glob(".*.parts"))


SCRIPT = """
import sys, time
from catalign.config import DataConfig
from catalign.data import chunks, prepare
prepare.CHUNK_ROWS = 8
process = prepare.process
prepare.process = lambda *task: (process(*task), time.sleep(float(sys.argv[2])))[0]
print(prepare.prepare(DataConfig.model_validate_json(sys.argv[1]), progress=False))
"""


def test_a_killed_process_continues(tmp_path: Path) -> None:
    shop = config(tmp_path, products(32)).model_dump_json()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    victim = subprocess.Popen([sys.executable, "-c", SCRIPT, shop, "60"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("cache/.*.parts/*.json")):
            assert time.monotonic() < deadline
            assert victim.poll() is None
            time.sleep(0.02)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not list(tmp_path.glob("cache/*/manifest.json"))
    survivor = subprocess.run(
        [sys.executable, "-c", SCRIPT, shop, "0"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert len(Catalogue.open(survivor.stdout.strip(), verify=True)) == 32


def test_parallel_equals_serial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHUNK_ROWS", 8)
    table = products()
    table["image"][9] = b"x"
    serial = prepare.prepare(config(tmp_path, table, cache=str(tmp_path / "serial")), progress=False)
    parallel = prepare.prepare(config(tmp_path, table, workers=2), progress=False)
    assert sums(serial) == sums(parallel)


def test_fingerprint_follows_content_and_settings_that_matter(tmp_path: Path) -> None:
    table = products()
    base = prepare.prepare(config(tmp_path, table), progress=False)
    assert prepare.prepare(config(tmp_path, table, workers=2, max_bad_share=0.1), progress=False) == base
    weights = ColumnsConfig(text={"title": 5.0})
    heavier = Catalogue.load(config(tmp_path, table, columns=weights), progress=False)
    assert heavier.path == base
    assert heavier.fields == {"title": 5.0}
    others = [
        config(tmp_path, table, image_size=(10, 8)),
        config(tmp_path, table, max_tokens=9),
        config(tmp_path, table, vocabulary_size=201),
        config(tmp_path, table, split={"seed": 1}),
        config(tmp_path, table, columns=ColumnsConfig(image=None)),
        config(tmp_path, {**table, "title": ["changed", *table["title"][1:]]}),
    ]
    assert len({base, *(prepare.prepare(other, progress=False) for other in others)}) == 7


def test_the_vocabulary_never_saw_what_is_held_out(tmp_path: Path) -> None:
    table = {**products(60), "split": ["train"] * 40 + ["val"] * 10 + ["test"] * 10}
    table["title"][40:] = [f"zzqzz xyxyx {number}" for number in range(20)]
    shop = Catalogue.load(config(tmp_path, table, columns=ColumnsConfig(split="split")), progress=False)
    pieces = shop.vocabulary.tokenizer.get_vocab()
    assert "shoe" in pieces
    assert not {"zzqzz", "xyxyx", "z", "q"} & set(pieces)
    assert shop.vocabulary.counts.sum() == sum(len(shop.tokens["title"][row]) for row in range(40))


def test_photos_alone_make_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(30):
        (tmp_path / "photos" / f"{number}.png").write_bytes(photo(number))
    source = {"name": "folder", "path": str(tmp_path / "photos")}
    shop = Catalogue.load(DataConfig(name="f", source=source, cache=str(tmp_path / "cache")), progress=False)
    assert len(shop) == 30
    assert not shop.has_text.any()
    assert shop.has_image.all()
    assert shop.images.shape == (30, 64, 64, 3)
    assert shop.vocabulary.size > 5


def test_the_fallback_stands_in_for_an_absent_copy(tmp_path: Path) -> None:
    table = products()
    renamed = {"item": table["id"], "image": table["image"], "text": table["title"]}
    here = config(tmp_path, renamed)
    columns = ColumnsConfig(rename={"item": "id", "text": "title"})
    absent = {"name": "parquet", "path": "None/absent.parquet"}
    shop = here.model_copy(update={"fallback": here.source, "fallback_columns": columns})
    shop = DataConfig(**{**shop.model_dump(), "source": absent})
    assert Catalogue.load(shop, progress=False).text("title")[0] == "red shoe number 0"
    with pytest.raises(CatalignError, match=r"absent.parquet does not exist.*\n.*CATALIGN_DATA"):
        Catalogue.load(shop.model_copy(update={"root": str(tmp_path)}), progress=False)


def test_joined_columns_say_what_the_attributes_say(tmp_path: Path) -> None:
    table = {**products(), "colour": [COLOURS[n % 4] if n else None for n in range(40)], "year": [2011.0] * 40}
    columns = {
        "text": {"title": 1.0, "facts": 0.0},
        "attributes": ["colour", "year"],
        "joined": {"facts": ["year", "colour"]},
    }
    catalogue = Catalogue.load(config(tmp_path, table, columns=ColumnsConfig(**columns)), progress=False)
    assert catalogue.text("facts")[:3] == ["2011", "2011, blue", "2011, green"]
    assert catalogue.vocabulary.decode(catalogue.tokens["facts"].pad(np.array([1]))[0][0]) == "2011, blue"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"text": {"title": 1, "facts": 0}, "joined": {"facts": ["colour"]}}, "colour.*not among attributes"),
        ({"text": {"title": 1}, "attributes": ["colour"], "joined": {"facts": ["colour"]}}, "no weight in text"),
        ({"text": {"facts": 1}, "attributes": ["colour"], "joined": {"facts": ["colour"]}}, "primary"),
        ({"unpack": {"more": {"Neck": "neck"}, "rest": {"Collar": "neck"}}}, "two keys would be column 'neck'"),
        ({"unpack": {"more": {"Neck": "neck"}}}, "'neck', which is not among attributes"),
    ],
)
def test_columns_that_make_no_sense(columns: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ColumnsConfig(**columns)
