from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest

from catalign.data.incoming import incoming
from catalign.errors import CatalignError
from catalign.retrieval.enhance import COLUMNS, Enhancer, check_output, write
from toy_products import make_config, photo

ROWS = [
    {"id": "n1", "title": "green shoe", "colour": "", "kind": "shoe", "image": "green.png"},
    {"id": "n2", "title": "blue bag", "colour": "Red", "kind": "", "image": ""},
    {"id": "n3", "title": "", "colour": "NA", "kind": "sock", "image": "red.png"},
    {"id": "n4", "title": "red hat", "colour": "Red", "kind": "hat", "image": ""},
    {"id": "n5", "title": "red sock", "colour": "", "kind": "", "image": "broken.png"},
]


@pytest.fixture
def propose(toys_folder):
    """A function from an enhancer, a table and its folder of photos to proposals and bad rows."""

    def run(enhancer, path, images=None):
        with incoming(path, make_config(toys_folder), attributes=list(enhancer.supports), images=images) as products:
            return enhancer(products), products.bad

    return run


@pytest.fixture
def table(tmp_path):
    """A function from an ending to a table of new products, with photos in a folder."""
    (tmp_path / "photos").mkdir()
    for colour in ("green", "red"):
        (tmp_path / "photos" / f"{colour}.png").write_bytes(photo(colour))
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")

    def make(suffix: str, rows=ROWS):
        path = tmp_path / f"new{suffix}"
        if suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pd.DataFrame(rows).to_parquet(path)
        return path, str(tmp_path / "photos")

    return make


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_missing_values_are_proposed_and_given_ones_kept(toys, propose, table, suffix):
    path, images = table(suffix)
    before = path.read_bytes()
    found, (bad,) = propose(Enhancer(toys, precision=0), path, images)
    assert path.read_bytes() == before
    assert list(found.columns) == COLUMNS
    # Only what is missing has a line; a value that is there is not touched, even where it is doubtful (n2).
    assert list(zip(found["id"], found["attribute"])) == [("n1", "colour"), ("n3", "colour"), ("n2", "kind")]
    proposed = found.set_index("id")
    assert (proposed.loc["n1", "proposed"], proposed.loc["n3", "proposed"]) == ("Green", "Red")
    assert proposed.loc["n2", "proposed"] == "bag"
    assert found["row"].tolist() == [0, 2, 1]
    assert (bad.row, bad.id, bad.column) == (4, "n5", "image")
    for line in found.itertuples():
        values = toys.catalogue.attributes[line.attribute]
        for id in (line.support_1, line.support_2, line.support_3):
            assert values[toys.catalogue.row(id)] == line.proposed
        assert 0 < line.confidence <= 1


def test_a_table_without_an_attribute_lacks_it_everywhere(toys, propose, table):
    path, _ = table(".csv", [{"id": "n1", "title": "green shoe"}, {"id": "n2", "title": "red hat"}])
    found, _ = propose(Enhancer(toys, ["colour"], precision=0), path)
    assert found["proposed"].tolist() == ["Green", "Red"]


@pytest.mark.parametrize("packed", [True, False])
def test_a_table_has_an_attribute_in_a_json_column_or_in_its_own(toys_folder, table, packed):
    config = make_config(toys_folder)
    columns = config.columns.model_copy(update={"unpack": {"more": {"Colour": "colour"}}})
    rows = [{**row, "more": json.dumps({"Colour": row["colour"]})} for row in ROWS]
    path, photos = table(".jsonl", [{key: row[key] for key in row if key != "colour" or not packed} for row in rows])
    with incoming(
        path, config.model_copy(update={"columns": columns}), attributes=["colour", "kind"], images=photos
    ) as found:
        assert found.attributes == ["colour", "kind"]
        tables = [products.to_pydict() for products, _ in found]
    assert tables[0]["attribute:colour"] == ["", "Red", "", "Red"]


def test_a_threshold_leaves_doubtful_values_empty(toys, propose, table):
    path, images = table(".csv")
    enhancer = Enhancer(toys, ["colour"])
    enhancer.supports["colour"].threshold = 1.1
    found, _ = propose(enhancer, path, images)
    assert found["proposed"].tolist() == found["support_1"].tolist() == ["", ""]
    assert found["confidence"].isna().all()
    assert enhancer.summary(found).row_count == 1


def test_the_threshold_is_what_val_supports(toys, monkeypatch):
    """Colours are told by neighbours without fail; without val products, or with wrong ones, nothing is proposed."""
    rows = np.arange(len(toys.catalogue))
    monkeypatch.setattr(toys.catalogue, "splits", np.where(rows % 4 == 0, "val", "train"))
    assert Enhancer(toys, ["colour"], precision=1.0).supports["colour"].threshold <= 1
    colours = toys.catalogue.attributes["colour"]
    wrong = np.where(rows % 4 == 0, np.where(colours == "Red", "Blue", "Red"), colours)
    monkeypatch.setitem(toys.catalogue.attributes, "colour", wrong)
    assert Enhancer(toys, ["colour"], precision=0.5).supports["colour"].threshold == float("inf")
    monkeypatch.setattr(toys.catalogue, "splits", np.full(len(rows), "train"))
    assert Enhancer(toys, ["colour"], precision=0.5).supports["colour"].threshold == float("inf")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_proposals_are_written_in_the_form_of_their_name(tmp_path, suffix):
    lines = pd.DataFrame([[0, "a", "t", "colour", "Red", 0.9, "x", "y", "z"]], columns=COLUMNS)
    path = tmp_path / f"out{suffix}"
    write(lines, path)
    read = {".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True), ".parquet": pd.read_parquet}[suffix]
    assert read(path).to_dict() == lines.to_dict()


def test_mistakes_are_told(toys, propose, table, tmp_path):
    with pytest.raises(CatalignError, match=r"\.xlsx.*known|kind of table to write"):
        check_output(tmp_path / "out.xlsx")
    with pytest.raises(CatalignError, match="did you mean 'colour'"):
        Enhancer(toys, ["color"])
    with pytest.raises(CatalignError, match="precision 95"):
        Enhancer(toys, precision=95)
    path, _ = table(".csv", [{"id": "n1", "name": "green shoe"}])
    with pytest.raises(CatalignError, match=r"data\.columns\.text names column 'title'"):
        propose(Enhancer(toys, precision=0), path)
    path, images = table(".csv", [ROWS[4]])
    with pytest.raises(CatalignError, match=r"no row that can be used: row 0 \(image\)"):
        propose(Enhancer(toys, precision=0), path, images)
