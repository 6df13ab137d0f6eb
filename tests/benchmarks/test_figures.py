"""The figures' pure parts: which queries are shown, what is said of them, and the sheets and curves drawn from that."""

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from catalign.artifacts import seal, write_json
from catalign.errors import CatalignError
from catalign.evaluation.kagl import Search, Task
from catalign.reporting import learning, plots
from catalign.reporting.svg import PAPER, alone
from catalign.training.run import Run


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("kagl/figures.py")


@pytest.fixture
def planted():
    """Twenty documents, catalogue rows 2, 4, … 40, on a quarter circle: rank r is document r - 1 for the query [1, 0].

    The relevant documents of its thirty queries are of rank 1 for the first ten, 2 for the next, 11 or more for the
    last; one query's only product is not among the documents.
    """
    angles = np.linspace(0, 1.5, 20)
    documents = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows = 2 * np.arange(1, 21)
    first = [0] * 10 + [1] * 10 + list(range(10, 19))
    relevant = [np.array([rows[19], rows[place]]) for place in first] + [np.array([41])]
    queries = np.tile([1.0, 0.0], (30, 1))
    return Search(Task("text-to-image", [f"query {n}" for n in range(30)], relevant), queries, documents, rows)


def test_answers_say_what_is_right_and_where(script, planted):
    hit, second, miss = script.answer(planted, np.array([0, 10, 23]), 3)
    assert [found.query for found in (hit, second, miss)] == ["query 0", "query 10", "query 23"]
    assert [found.rank for found in (hit, second, miss)] == [1, 2, 14]
    assert [found.right for found in (hit, second, miss)] == [2, 4, 28]
    assert all(found.shown.tolist() == [2, 4, 6] for found in (hit, second, miss))
    assert second.correct.tolist() == [False, True, False]
    assert not miss.correct.any()
    assert hit.relevant == 2
    assert script.answer(planted, np.array([], int), 3) == []
    with pytest.raises(CatalignError, match="no relevant"):
        script.answer(planted, np.array([29]), 3)


def test_hits_and_misses_are_drawn_by_chance_and_always_the_same(script, planted):
    hits, misses = script.hits_and_misses(planted, 6)
    assert len(set(hits)) == len(set(misses)) == 6
    assert set(hits) <= set(range(10))
    assert set(misses) <= set(range(20, 29))
    assert hits.tolist() != sorted(hits)
    for again, before in zip(script.hits_and_misses(planted, 6), (hits, misses)):
        assert again.tolist() == before.tolist()
    assert [len(found) for found in script.hits_and_misses(planted, 100)] == [10, 9]


def test_words_are_drawn_from_the_frequent_half(script, planted):
    relevant = [planted.rows[:size] for size in (1, 2, 9, 8, 3)]
    words = planted._replace(task=Task("color-to-product", list("abcde"), relevant), queries=planted.queries[:5])
    assert set(script.frequent(words, 9)) == {2, 3, 4}
    assert script.frequent(words, 2).tolist() == script.frequent(words, 2).tolist()


def test_runs_are_named_by_what_tells_them_apart(script):
    assert script.legend([Path("runs/a/seed0"), Path("runs/a/seed1")]) == ["seed0", "seed1"]
    assert script.legend([Path("runs/a/seed0"), Path("runs/b/seed0")]) == ["a/seed0", "b/seed0"]


class Photos:
    """A catalogue whose product n has a photo of the grey value n."""

    images = np.empty((50, 8, 6, 3))

    def thumbnail(self, row):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 8), (row, row, row)).save(buffer, "PNG")
        return buffer.getvalue()


def test_a_sheet_shows_the_photos_in_order_with_their_frames(script, planted):
    (found,) = script.answer(planted, np.array([10]), 3)
    sheet = script.Sheet(Photos(), [("heading", [script.titled(found)])], "note")
    image = sheet.draw()
    middle = next(y for y in range(image.height) if image.getpixel((script.MARGIN + script.FRAME + 4, y)) == (4, 4, 4))
    line = [image.getpixel((x, middle)) for x in range(image.width)]
    greys = [pixel[0] for pixel in line if len(set(pixel)) == 1 and pixel[0] < 50]
    assert list(dict.fromkeys(greys)) == [4, 2, 6]  # the right photo, then ranks 1, 2 (the same photo) and 3
    assert greys.count(4) == 2 * greys.count(2)
    green = ImageColor.getrgb(script.RIGHT[1])
    assert line.count(green) == 2 * script.FRAME


def test_a_title_too_long_is_cut(script):
    font = script._font(20)
    cut = script._cut("Women's " * 20, font, 300)
    assert cut.endswith("…")
    assert 200 < font.getlength(cut) <= 300
    assert script._cut("Black", font, 300) == "Black"


@pytest.fixture
def bare_run(tiny_config, tmp_path):
    """A run whose two stages left their curves and nothing else."""
    config = tiny_config(tmp_path / "run")
    run = Run.create(config)
    for name, task in (("text", "mlm"), ("align", "contrastive")):
        history = []
        for step in range(3):
            values = {f"{part}/{task}/loss": 1.0 / (1 + step) for part in ("train", "val")}
            values |= {f"val/{task}/accuracy": 0.5, f"val/{task}/trivial_loss": 2.0, f"monitor/{name}/rankme": 9.0}
            history.append({"step": step, "seconds": 60.0 * step, "values": values})
        write_json(run.stage_path(name) / "metrics.json", history)
        seal(run.stage_path(name), stage=name)
    return run


def test_stages_follow_each_other_in_the_timeline(bare_run, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "timeline", lambda stages, label: drawn.update(stages) or "<svg/>")
    learning.timeline({"one": bare_run, "two": bare_run})
    assert list(drawn) == ["text", "align"]
    assert list(drawn["text"]) == ["mlm loss"]
    assert list(drawn["align"]) == ["contrastive loss", "contrastive accuracy within val batches"]
    curves = drawn["align"]["contrastive loss"]
    assert set(curves) == {(run, line) for run in ("one", "two") for line in ("train", "val", "trivial solution")}
    assert curves["one", "train"].steps == [2.0, 3.0, 4.0]  # after the two minutes of text


def test_a_timeline_stands_alone(bare_run):
    svg = alone(learning.timeline({"one": bare_run, "two": bare_run}))
    root = ElementTree.fromstring(svg)
    assert "var(" not in svg
    assert root[0].get("fill") == PAPER
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"align: contrastive loss", "minutes", "train", "val", "trivial solution", "one", "two"} <= texts


def test_what_is_missing_is_said_in_a_sentence(script, bare_run, tmp_path, capsys):
    assert script.main([str(tmp_path / "none"), "-o", str(tmp_path / "figures")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    assert script.main([str(bare_run.path), "-o", str(tmp_path / "figures")]) == 2
    assert "has no embeddings yet" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
