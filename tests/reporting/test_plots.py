import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from catalign.reporting import plots, svg
from catalign.reporting.plots import Series

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_curves_are_svg_in_the_colours_of_the_page():
    steps = list(range(100))
    svg = plots.curves(
        {"train": Series(steps, np.linspace(3, 1, 100)), "val": Series([0, 99], [3, 1.2])},
        label='loss of "x" < y',
        points=["val"],
        smooth=True,
    )
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'loss of "x" < y'
    assert root.get("width") is None  # the page decides the size
    assert "var(--c1, #0072b2)" in svg
    assert "var(--c2, #d55e00)" in svg
    assert {"train", "val", "step"} <= set(texts(svg))
    assert "metadata" not in svg


def test_two_figures_on_a_page_share_no_id_of_different_meaning():
    first = plots.curves({"a": Series([0, 1, 2], [1, 2, 3])}, label="a")
    second = plots.bars({"a": 1.0, "b": 2.0}, {"a": svg.PALETTE[0]}, label="b")
    found = [
        {e.get("id"): ElementTree.tostring(e) for e in ElementTree.fromstring(s).iter() if e.get("id")}
        for s in (first, second)
    ]
    assert all(found[0][key] == found[1][key] for key in found[0].keys() & found[1].keys())


def test_the_same_numbers_give_the_same_svg():
    draw = lambda: plots.curves({"a": Series([0, 1, 2], [1, 2, 3])}, label="a")  # noqa: E731
    assert draw() == draw()


def test_labels_are_text_not_markup_or_mathematics():
    svg = plots.bars({"<script>$x$</script>": 0.25, "#0072b2": 0.12345}, {}, label="bars")
    assert "<script>" not in svg
    assert {"<script>$x$</script>", "#0072b2", ".250", ".123"} <= set(texts(svg))


def test_a_curve_with_gaps_or_one_point_is_drawn():
    assert "<svg" in plots.curves({"a": Series([0, 1, 2, 3], [1, float("nan"), 2, 3])}, label="a", smooth=True)
    assert "<svg" in plots.curves({"a": Series([0], [1])}, label="a")


def test_embedding_map_names_frequent_labels_only():
    labels = ["red"] * 120 + ["blue"] * 120 + ["rare"]
    svg = plots.embedding_map(
        np.random.default_rng(0).normal(size=(241, 2)), labels, ["red", "blue", "rare"], label="map"
    )
    assert {"red", "blue"} <= set(texts(svg))
    assert "rare" not in texts(svg)
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}use"))) == 241


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3451, ".345"),
        (-0.5, "-.500"),
        (1.0, "1.000"),
        (0.0, ".000"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (1500, "1,500"),
        (7, "7"),
        (float("nan"), "n/a"),
    ],
)
def test_decimal(value, text):
    assert plots.decimal(value) == text


def test_smoothed_keeps_a_constant_and_damps_noise():
    assert np.allclose(plots.smoothed(np.full(50, 3.0)), 3.0)
    noise = np.random.default_rng(0).normal(size=500)
    assert plots.smoothed(noise)[50:].std() < 0.5 * noise.std()


def test_most_common_is_deterministic_and_leaves_out_missing():
    assert plots.most_common(["b", "a", "", "", "", "c", "c"], 2) == ["c", "a"]


def test_picture_keeps_the_pixels():
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[:, 3:] = 255
    uri = plots.picture(pixels, quality=95)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), dtype=int)
    assert image.shape == (8, 6, 3)
    assert np.abs(image - pixels).mean() < 10
    assert plots.picture(pixels / 255.0, quality=95) == uri
