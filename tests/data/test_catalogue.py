"""The catalogue as its users see it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from catalign.config import ColumnsConfig, DataConfig
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError

COUNT = 120


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Products with every kind of column: own groups and splits, numbers, gaps."""
    folder = tmp_path_factory.mktemp("shop")
    photos = []
    for number in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(np.full((30, 10, 3), number, dtype=np.uint8)).save(buffer, "PNG")
        photos.append({"bytes": buffer.getvalue() if number != 7 else None, "path": None})
    table = {
        "sku": list(range(1000, 1000 + COUNT)),
        "image": photos,
        "name": [f"<b>Shirt</b>  &amp; tie {number}" for number in range(COUNT)],
        "story": ["" if number % 2 else "A long story. It ends." for number in range(COUNT)],
        "year": [2011.0 if number else None for number in range(COUNT)],
        "colour": ["NA" if number == 3 else "Navy Blue" for number in range(COUNT)],
        "same": [None if number == 5 else number // 2 for number in range(COUNT)],
        "part": ["train"] * 80 + ["validation"] * 20 + ["test"] * 20,
    }
    pq.write_table(pa.table(table), folder / "shop.parquet")
    columns = ColumnsConfig(
        id="id",
        text={"title": 0.7, "story": 0.3},
        attributes=["year", "colour"],
        group="same",
        split="part",
        rename={"sku": "id", "name": "title"},
    )
    source = {"name": "table", "path": str(folder / "shop.parquet")}
    cache = str(folder / "cache")
    config = DataConfig(
        name="shop", source=source, columns=columns, image_size=(30, 20), vocabulary_size=200, cache=cache
    )
    return Catalogue.load(config, progress=False)


def test_every_column_arrives(shop: Catalogue) -> None:
    assert len(shop) == COUNT
    assert shop.ids[:2] == ["1000", "1001"]
    assert shop.fields == {"title": 0.7, "story": 0.3}
    assert shop.text("title")[3] == shop.text()[3] == "Shirt & tie 3"
    assert shop.text("story")[:3] == ["A long story. It ends.", "", "A long story. It ends."]
    assert list(shop.text("story"))[1:3] == ["", "A long story. It ends."]
    assert shop.text()[-1] == f"Shirt & tie {COUNT - 1}"
    assert shop.attributes["year"][:2].tolist() == ["", "2011"]
    assert shop.attributes["colour"][2:4].tolist() == ["Navy Blue", ""]
    assert shop.groups.dtype == np.int64
    assert shop.groups[:8].tolist() == [0, 0, 1, 1, 2, 3, 4, 4]  # row 5 has no group, so it has its own
    assert shop.histories is None


def test_photos_are_memory_mapped_with_aspect_and_padding(shop: Catalogue) -> None:
    assert isinstance(shop.images, np.memmap)
    assert shop.images.dtype == np.uint8
    assert shop.images.shape == (COUNT, 30, 20, 3)
    assert (shop.images[50] == 50).all()  # padded with its own colour
    assert np.flatnonzero(~shop.has_image).tolist() == [7]


def test_tokens_have_no_specials_and_may_be_empty(shop: Catalogue) -> None:
    assert len(shop.tokens["story"][1]) == 0
    assert shop.vocabulary.decode(shop.tokens["title"][3]) == "shirt & tie 3"
    assert not {shop.vocabulary.cls, shop.vocabulary.sep} & set(shop.tokens["title"].values.tolist())
    assert shop.has_text.all()


def test_rows_and_row(shop: Catalogue) -> None:
    assert shop.rows("val").tolist() == list(range(80, 100))
    assert len(shop.rows("train", "val")) == 100
    assert len(shop.rows()) == COUNT
    quarter, half = (set(shop.rows("train", share=share).tolist()) for share in (0.25, 0.5))
    assert quarter < half < set(shop.rows("train").tolist())
    kept = {*shop.groups[list(quarter)]}
    assert quarter == {row for row in shop.rows("train").tolist() if shop.groups[row] in kept}, "whole groups"
    navy = shop.having("colour", ["Navy Blue"])
    assert shop.rows("train", without={"colour": ["Navy Blue"]}).tolist() == [
        r for r in shop.rows("train") if not navy[r]
    ]
    with pytest.raises(CatalignError, match=r"unknown value of colour 'Navy'\n.*did you mean 'Navy Blue'"):
        shop.rows(without={"colour": ["Navy"]})
    assert shop.row("1042") == 42
    with pytest.raises(CatalignError, match=r"no product '10042'\n.*did you mean '1042'"):
        shop.row("10042")
    with pytest.raises(CatalignError, match=r"unknown split 'tset'\n.*did you mean 'test'"):
        shop.rows("tset")
    with pytest.raises(CatalignError, match=r"unknown text field 'titel'\n.*did you mean 'title'"):
        shop.text("titel")


def test_an_empty_split_says_which_there_are(shop: Catalogue) -> None:
    other = Catalogue.open(shop.path)
    other.splits = np.full(COUNT, "train")
    with pytest.raises(CatalignError, match=r"split val of catalogue 'shop' is empty \(there are: train 120\)"):
        other.rows("val")


def test_it_describes_itself(shop: Catalogue) -> None:
    facts = shop.describe()
    assert facts["splits"] == {"train": 80, "val": 20, "test": 20}
    assert facts["missing"] == {"image": 1, "title": 0, "story": 60, "year": 1, "colour": 1}
    assert facts["duplicates"] == COUNT - 2
    assert facts["quarantine"] == {"rows": 0}
    assert "train 80, val 20, test 20" in repr(shop)
    page = shop._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "Shirt &amp; tie 0" in page


def test_thumbnails_are_jpeg(shop: Catalogue) -> None:
    assert np.asarray(Image.open(io.BytesIO(shop.thumbnail(50)))).shape == (30, 20, 3)
    assert Image.open(io.BytesIO(shop.thumbnail(7))).getpixel((0, 0)) == (224, 224, 224)


def test_altered_or_unfinished_folders_are_refused(shop: Catalogue, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shop.path, tmp_path / "copy"))
    pixels = np.load(copy / "images.npy", mmap_mode="r+")
    pixels[0, 0, 0, 0] ^= 1
    pixels.flush()
    with pytest.raises(CatalignError, match=r"images.npy was altered"):
        Catalogue.open(copy).verify()
    (copy / "table.arrow").write_bytes((copy / "table.arrow").read_bytes()[:-10])
    with pytest.raises(CatalignError, match=r"table.arrow has \d+ bytes"):
        Catalogue.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(CatalignError, match="unfinished"):
        Catalogue.open(copy)


def test_products_divided_between_splits_are_warned_of(tmp_path: Path) -> None:
    table = {
        "id": [str(row) for row in range(10)],
        "title": ["same title"] * 2 + [f"title {row}" for row in range(8)],
        "split": ["test"] + ["train"] * 9,
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    source = {"name": "parquet", "path": str(tmp_path / "t.parquet")}
    columns = ColumnsConfig(image=None, split="split")
    with pytest.warns(UserWarning, match=r"1 products \(2 rows\) are divided"):
        leaky = Catalogue.load(
            DataConfig(
                name="leaky", source=source, columns=columns, cache=str(tmp_path / "cache"), vocabulary_size=200
            ),
            progress=False,
        )
    assert leaky.describe()["divided_groups"] == 1


def test_a_synthetic_catalogue_has_histories(tmp_path: Path) -> None:
    columns = ColumnsConfig(text={"title": 1, "description": 1}, attributes=["category", "colour"], group="group")
    source = {"name": "synthetic", "products": 80, "users": 20, "image_size": (32, 32), "missing": 0.1}
    config = DataConfig(
        name="synthetic", source=source, columns=columns, image_size=(32, 32), cache=str(tmp_path), vocabulary_size=300
    )
    made = Catalogue.load(config, progress=False)
    assert len(made) == 80
    assert made.histories is not None
    assert len(made.histories) == 20
    assert 0 < (~made.has_image).sum() < 30
    held_out = made.splits != "train"
    for group in np.unique(made.groups[held_out]):
        assert held_out[made.groups == group].all()
