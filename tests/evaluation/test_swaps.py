from __future__ import annotations

import numpy as np
import pytest

from catalign.evaluation.swaps import KINDS, Swaps

COUNT = 240


@pytest.fixture
def toy(catalogue):
    rng = np.random.default_rng(0)
    category = rng.integers(0, 6, COUNT)
    attributes = {
        "category": np.array(list("abcdef"), dtype=object)[category],
        "parent": np.array(["one", "two"], dtype=object)[category // 3],
    }
    titles = [f"first{row} second{row} third{row}" for row in range(COUNT - 1)] + ["alone"]
    return catalogue(titles, groups=rng.integers(0, 60, COUNT), attributes=attributes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_listing_shows_another_product_never_of_its_group(toy, kind):
    rows = np.arange(20, COUNT)
    swaps = Swaps(toy, rows, "category", "parent")
    spoilt, sound = swaps.draw(kind, 0.25, 3), swaps.sound
    category, parent = toy.attributes["category"], toy.attributes["parent"]
    assert len(spoilt.positions) == 55 == len(set(spoilt.positions))
    for place, position in enumerate(spoilt.positions):
        row, shown = rows[position], spoilt.listings
        changed = {
            "photo": shown.photo_rows[place] != row,
            "title": shown.titles[place] != sound.titles[position],
            "category": shown.categories[place] != category[row],
        }
        what = kind.removesuffix("_hard")
        assert [name for name, has in changed.items() if has] == ["title" if what == "words" else what]
        if what in ("photo", "title"):
            other = (shown.photo_rows if what == "photo" else shown.title_rows)[place]
            assert toy.groups[other] != toy.groups[row]
            assert (category[other] == category[row]) == kind.endswith("_hard")
            assert what == "photo" or shown.titles[place] == toy.titles[other]
        if kind == "category_hard":
            assert parent[category == shown.categories[place]][0] == parent[row]
        if kind == "words":
            assert shown.title_rows[place] == -1
            old, new = sound.titles[position].split(), shown.titles[place].split()
            assert (old[0], old[2]) == (new[0], new[2])


def test_draws_are_of_their_seed(toy):
    swaps = Swaps(toy, np.arange(COUNT), "category", None)
    assert "category_hard" not in swaps.kinds
    first, same, other = (swaps.draw("photo_hard", 0.1, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.positions, same.positions)
    assert np.array_equal(first.listings.photo_rows, same.listings.photo_rows)
    assert not np.array_equal(first.positions, other.positions)


def test_a_listing_without_a_partner_stays_sound(catalogue):
    attributes = {"category": np.array(["a", "a", "b", "b"], dtype=object)}
    toy = catalogue(["one", "two", "three", "four"], groups=[0, 1, 2, 2], attributes=attributes)
    swaps = Swaps(toy, np.arange(4), "category", None)
    assert set(swaps.draw("photo_hard", 1.0, 0).positions) == {0, 1}
    assert not len(swaps.draw("words", 1.0, 0).positions)
