"""Which rows are one product, and splits that keep them together."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from catalign.data import splits
from catalign.errors import CatalignError


def photos(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures: what is left of a photo at 8 x 8 px differs between any two."""
    generator = np.random.default_rng(seed)
    light, colour = generator.integers(40, 200, (count, 6, 6, 1)), generator.integers(0, 50, (count, 6, 6, 3))
    small = (light + colour).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((48, 64), Image.Resampling.BICUBIC)) for each in small])


def reencoded(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@settings(max_examples=60, deadline=None)
@examples(
    st.lists(st.integers(0, 60), min_size=20, max_size=300).filter(lambda groups: len(set(groups)) > 5),
    st.floats(0.05, 0.3),
    st.floats(0.05, 0.3),
    st.integers(0, 5),
)
def test_no_group_is_divided_and_shares_are_met(labels: list[int], val: float, test: float, seed: int) -> None:
    groups = np.array(labels)
    drawn = splits.leak_aware(groups, {"val": val, "test": test}, seed)
    assert len(drawn) == len(groups)
    for group in set(labels):
        assert len(set(drawn[groups == group].tolist())) == 1
    assert set(drawn.tolist()) == {"train", "val", "test"}
    largest = np.unique(groups, return_counts=True)[1].max()
    for name, share in (("val", val), ("test", test)):
        assert abs((drawn == name).sum() - share * len(groups)) <= largest
    assert np.array_equal(drawn, splits.leak_aware(groups, {"val": val, "test": test}, seed))


def test_another_seed_and_no_share() -> None:
    groups = np.arange(200)
    first, second = (splits.leak_aware(groups, {"val": 0.1, "test": 0.2}, seed) for seed in (0, 1))
    assert (first == "val").sum() == 20
    assert (first == "test").sum() == 40
    assert (first != second).any()
    assert set(splits.leak_aware(groups, {"val": 0.0, "test": 0.0}).tolist()) == {"train"}


def test_a_giant_group_trains() -> None:
    groups = np.concatenate([np.zeros(500, dtype=int), np.arange(1, 501)])
    for seed in range(5):
        assert set(splits.leak_aware(groups, {"test": 0.2}, seed)[:500].tolist()) == {"train"}


def test_too_few_products_to_split() -> None:
    with pytest.raises(CatalignError, match=r"5 rows are 2 different products.*\n.*bring more products"):
        splits.leak_aware(np.array([0, 0, 0, 1, 1]), {"val": 0.1, "test": 0.1})


def test_titles_and_pixels_join_rows_through_each_other() -> None:
    pictures = photos(6)
    pictures[2] = pictures[1]
    titles = ["Red Shoe", "red  shoe!", "Blue bag", "", "", "BLUE-BAG"]
    groups = splits.find_groups(titles, pictures, np.ones(6, dtype=bool), near=False)
    assert groups.tolist() == [0, 0, 0, 1, 2, 0]  # 0-1 by title, 1-2 by pixels, 2-5 by title; empty titles join nothing


@pytest.mark.parametrize("quality", [95, 85])
def test_near_identical_pictures_join_and_others_do_not(quality: int) -> None:
    pictures = photos(400)
    again = np.stack([reencoded(picture, quality) for picture in pictures[:100]])
    every = np.concatenate([pictures, again])
    has_image, titles = np.ones(len(every), dtype=bool), [str(row) for row in range(len(every))]
    groups = splits.find_groups(titles, every, has_image)
    assert (groups[400:] == groups[:100]).mean() > 0.97
    assert len(set(groups[:400].tolist())) == 400
    assert len(set(splits.find_groups(titles, every, has_image, near=False).tolist())) == 500


def test_blank_pictures_placeholders_and_absent_ones_join_nothing() -> None:
    pictures = photos(300)
    pictures[:10] = np.arange(250, 240, -1)[:, None, None, None]  # almost white, each another
    pictures[10:150] = pictures[200]  # 141 copies of "no photo available"
    pictures[150:160] = 0
    has_image = np.ones(300, dtype=bool)
    has_image[150:160] = False
    groups = splits.find_groups([f"title {row}" for row in range(300)], pictures, has_image)
    assert len(set(groups.tolist())) == 300


def test_given_splits_are_checked() -> None:
    assert splits.given(["train", "Validation", "test", "dev"], "part").tolist() == ["train", "val", "test", "val"]
    with pytest.raises(CatalignError, match=r"column 'part' holds '', 'holdout'.*\n.*data.columns.split=null"):
        splits.given(["train", "holdout", ""], "part")


def test_divided_products_are_warned_of() -> None:
    groups, names = np.array([7, 7, 8, 8, 9]), np.array(["train", "test", "val", "val", "test"])
    with pytest.warns(UserWarning, match=r"1 products \(2 rows\) are divided"):
        assert splits.warn_divided(groups, names) == 1


def test_a_large_catalogue_takes_no_quadratic_time() -> None:
    count = 20_000
    pictures = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    pictures[count // 2 :] = pictures[: count // 2]
    groups = splits.find_groups([""] * count, pictures, np.ones(count, dtype=bool))
    assert np.array_equal(groups, np.tile(np.arange(count // 2), 2))
