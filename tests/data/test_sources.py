"""Sources: the same products from every kind of file, and what is said of files that are not right."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from catalign import registry
from catalign.data.quarantine import MALFORMED
from catalign.data.sources import Source
from catalign.errors import CatalignError

TITLES = ["Red shoe", "Blue bag, leather", 'Green "fern" hat', "Gelbe Mütze", "Shirt"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "shoes").mkdir(parents=True)
    for number in range(len(TITLES)):
        pixels = np.full((8, 6, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "shoes" / f"nice_shoe-{number}.png")
    return folder


def paths() -> list[str]:
    return [f"shoes/nice_shoe-{number}.png" for number in range(len(TITLES))]


def write_csv(path: Path, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "title", "image"])
        writer.writerows(zip(range(len(TITLES)), TITLES, paths(), strict=True))
    return path


def write_jsonl(path: Path) -> Path:
    rows = [{"id": number, "title": title, "image": paths()[number]} for number, title in enumerate(TITLES)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, image: list[object] | None = None) -> Path:
    table = pa.table({"id": list(range(len(TITLES))), "title": TITLES, "image": image or paths()})
    pq.write_table(table, path, row_group_size=3)
    return path


def column(source: Source, name: str, size: int = 2) -> list[object]:
    return [cell for chunk in source.chunks(size, [name]) for cell in chunk[name]]


def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, photos: Path) -> None:
    files = [
        write_csv(tmp_path / "a.csv"),
        write_csv(tmp_path / "b.tsv", "\t"),
        write_jsonl(tmp_path / "c.jsonl"),
        write_parquet(tmp_path / "d.parquet"),
    ]
    for file in files:
        source = registry.build("source", "table", path=str(file), images=str(photos))
        assert source.columns() == ["id", "title", "image"]
        assert column(source, "title") == TITLES
        assert column(source, "image") == paths()
        assert source.images == photos


def test_a_folder_of_tables_is_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_parquet(folder / "1.parquet")
    write_parquet(folder / "0.parquet")
    source = registry.build("source", "parquet", path=str(folder))
    assert source.rows == 2 * len(TITLES)
    assert column(source, "title") == TITLES * 2
    pq.write_table(pa.table({"id": [1]}), folder / "2.parquet")
    with pytest.raises(CatalignError, match=r"unknown column of .*2.parquet"):
        column(registry.build("source", "parquet", path=str(folder)), "title")


def test_parquet_holds_image_bytes_in_both_forms(tmp_path: Path) -> None:
    raw = [f"photo {number}".encode() for number in range(len(TITLES))]
    plain = registry.build("source", "parquet", path=str(write_parquet(tmp_path / "raw.parquet", raw)))
    assert column(plain, "image") == raw
    structs = [{"bytes": data, "path": None} for data in raw]
    nested = registry.build("source", "parquet", path=str(write_parquet(tmp_path / "struct.parquet", structs)))
    assert column(nested, "image") == structs
    assert [len(chunk["image"]) for chunk in nested.chunks(2, ["image"])] == [2, 2, 1]


def test_folder_names_products_by_their_files(photos: Path) -> None:
    (photos / "notes.txt").write_text("no photo")
    (photos / ".hidden.png").write_bytes(b"")
    source = registry.build("source", "folder", path=str(photos))
    assert source.rows == len(TITLES)
    assert column(source, "id") == paths()
    assert set(column(source, "title")) == {"shoes nice shoe"}
    assert set(column(source, "folder")) == {"shoes"}


def test_lines_that_are_no_rows_are_told(tmp_path: Path) -> None:
    table = tmp_path / "bad.csv"
    table.write_text("id,title\n1,a\n2\n\n3,b,c\n4,d\n")
    chunks = list(registry.build("source", "csv", path=str(table)).chunks(10, ["id"]))
    assert chunks[0]["id"] == ["1", None, None, "4"]
    assert [bool(reason) for reason in chunks[0][MALFORMED]] == [False, True, True, False]
    lines = tmp_path / "bad.jsonl"
    lines.write_text('{"id": 1}\n{"id": 2\n[3]\n{"title": "x"}\n')
    source = registry.build("source", "jsonl", path=str(lines))
    assert source.columns() == ["id", "title"]
    assert [bool(reason) for reason in next(source.chunks(10, ["id"]))[MALFORMED]] == [False, True, True, False]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "folder"])
def test_fingerprint_follows_content_not_dates(kind: str, tmp_path: Path, photos: Path) -> None:
    def source() -> Source:
        return registry.build("source", kind, path=str(photos if kind == "folder" else path))

    writers = {"csv": write_csv, "parquet": write_parquet, "jsonl": write_jsonl, "folder": lambda path: path}
    path = writers[kind](tmp_path / f"table.{kind}")
    before = source().fingerprint()
    assert source().fingerprint() == before
    if kind == "folder":
        Image.new("RGB", (3, 3)).save(photos / "new.png")
    else:
        os.utime(path, (0, 0))
        assert source().fingerprint() == before
        TITLES[0] = "Redd shoe"
        writers[kind](path)
        TITLES[0] = "Red shoe"
    assert source().fingerprint() != before


def test_fingerprint_follows_the_photos_of_a_table(tmp_path: Path, photos: Path) -> None:
    table = write_csv(tmp_path / "a.csv")
    before = registry.build("source", "csv", path=str(table), images=str(photos)).fingerprint()
    Image.new("RGB", (30, 30)).save(photos / "shoes" / "nice_shoe-0.png")
    assert registry.build("source", "csv", path=str(table), images=str(photos)).fingerprint() != before


def test_wrong_files_get_a_sentence_that_helps(tmp_path: Path) -> None:
    with pytest.raises(CatalignError, match=r"does not exist.*\n.*data.root=FOLDER"):
        registry.build("source", "parquet", path=str(tmp_path / "absent.parquet"))
    with pytest.raises(CatalignError, match=r"data.source.path=PATH"):
        registry.build("source", "table", path="???")
    cut = write_parquet(tmp_path / "cut.parquet")
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(CatalignError, match=r"cut.parquet is not a whole Parquet file"):
        registry.build("source", "parquet", path=str(cut))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("id,title\n1,Mütze\n".encode("latin-1"))
    with pytest.raises(CatalignError, match=r"data.source.encoding=latin-1"):
        column(registry.build("source", "csv", path=str(latin)), "title")
    assert column(registry.build("source", "csv", path=str(latin), encoding="latin-1"), "title") == ["Mütze"]
    twice = tmp_path / "twice.csv"
    twice.write_text("id,id\n1,2\n")
    with pytest.raises(CatalignError, match=r"column 'id' is there twice"):
        registry.build("source", "csv", path=str(twice)).columns()
    (tmp_path / "sheet.xlsx").write_bytes(b"x")
    with pytest.raises(CatalignError, match=r"unknown kind of table 'sheet.xlsx'.*\n.*\.parquet"):
        registry.build("source", "table", path=str(tmp_path / "sheet.xlsx"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalignError, match=r"no .csv or .tsv file"):
        registry.build("source", "csv", path=str(tmp_path / "empty"))


def test_hub_streams_a_dataset(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "dataset"
    folder.mkdir()
    raw = [{"bytes": (photos / path).read_bytes(), "path": None} for path in paths()]
    write_parquet(folder / "train.parquet", raw)
    source = registry.build("source", "hub", path=str(folder))
    assert source.columns() == ["id", "title", "image"]
    assert column(source, "title") == TITLES
    assert column(source, "image") == raw
    before = source.fingerprint()
    write_parquet(folder / "train2.parquet", raw)
    assert registry.build("source", "hub", path=str(folder)).fingerprint() != before


def test_hub_offline_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'Marqo/KAGL' on the Hub (offline)\nlong traceback")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(CatalignError, match=r"'Marqo/KAGL'.*\(offline\)\n.*data.root=FOLDER"):
        registry.build("source", "hub", path="Marqo/KAGL", split="data").columns()
