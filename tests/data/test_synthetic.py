import numpy as np
import pytest

from catalign import registry
from catalign.data.interactions import Histories
from catalign.data.synthetic import _MATERIALS, _NEXT, BRANDS, Product, Synthetic
from catalign.data.synthetic_images import COLOURS, MATERIALS, draw
from catalign.data.synthetic_shapes import MARKS, SILHOUETTES
from catalign.data.synthetic_texts import COLOUR_WORDS, NOUNS, description
from catalign.errors import CatalignError

SOURCE = Synthetic(products=300, users=400)


def table(source, columns=None):
    columns = columns or source.columns()
    chunks = list(source.chunks(64, columns))
    return {column: [value for chunk in chunks for value in chunk[column]] for column in columns}


@pytest.fixture(scope="module")
def products():
    return table(SOURCE)


def test_is_registered_and_counts_its_rows(products):
    source = registry.build("source", "synthetic", products=5, users=0, image_size=[12, 20])
    assert source.rows == 5
    assert source.histories() is None
    assert table(source, ["image"])["image"][0].shape == (12, 20, 3)
    assert all(len(values) == 300 for values in products.values())
    assert len(set(products["id"])) == 300


def test_every_table_covers_every_name():
    assert list(SILHOUETTES) == list(_MATERIALS) == list(NOUNS)
    assert {material for some in _MATERIALS.values() for material in some} == set(MATERIALS)
    assert list(COLOURS) == list(COLOUR_WORDS)
    assert len(MARKS) == len(BRANDS)
    assert set(_NEXT) == set(_NEXT.values()) == set(SILHOUETTES)


def test_a_catalogue_is_a_prefix_of_a_larger_one(products):
    small = table(Synthetic(products=40))
    for column, values in small.items():
        assert all(np.array_equal(a, b) for a, b in zip(values, products[column], strict=False)), column
    again = SOURCE.row(299, ["image", "title", "description"])
    assert np.array_equal(again["image"], products["image"][299])
    assert again["title"] == products["title"][299]


def test_another_seed_is_another_catalogue(products):
    other = Synthetic(products=40, seed=1)
    assert table(other, ["title"])["title"] != products["title"][:40]
    prints = [Synthetic(**given).fingerprint() for given in ({}, {"seed": 1}, {"users": 1}, {"image_size": (8, 8)})]
    assert len(set(prints)) == 4
    assert prints[0] == Synthetic().fingerprint()


def test_variants_share_everything_but_photo_and_description(products):
    groups = {}
    for row, group in enumerate(products["group"]):
        groups.setdefault(group, []).append(row)
    several = [rows for rows in groups.values() if len(rows) > 1]
    assert 20 < sum(len(rows) - 1 for rows in several) < 70
    for first, *others in several:
        for row in others:
            assert all(products[column][row] == products[column][first] for column in ("title", *Product._fields[1:]))
            assert not np.array_equal(products["image"][row], products["image"][first])
    assert len({products["title"][rows[0]] for rows in groups.values()}) > 0.9 * len(groups)


def test_texts_tell_the_attributes(products):
    titles, texts = products["title"], products["description"]
    for row in range(300):
        words = [word for word in NOUNS[products["category"][row]] if word in texts[row].lower()]
        assert words, texts[row]
        assert 4 <= sum(texts[row].count(mark) for mark in ".?") <= 6
        assert "{" not in texts[row] + titles[row]
        assert "  " not in titles[row]
        assert not titles[row].lower().endswith((" by", " in", " from", " -"))
    coloured = [any(w in t.lower() for w in COLOUR_WORDS[c]) for t, c in zip(titles, products["colour"], strict=True)]
    assert 0.85 < np.mean(coloured) < 1
    nouns = [any(w in t.lower() for w in NOUNS[c]) for t, c in zip(titles, products["category"], strict=True)]
    assert np.mean(nouns) > 0.95


def test_a_description_has_an_article_that_fits():
    product = Product(0, "accessories", "watch", "orange", "plain", "metal", "Estrel", "autumn")
    texts = " ".join(description(product, np.random.default_rng(seed)) for seed in range(200)).lower()
    assert " an autumn" in texts or " an orange" in texts or " a watch" in texts
    assert " a autumn" not in texts
    assert " an watch" not in texts


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_is_in_the_photo(colour):
    """The nearest named colour of a plain product's centre is its own for most photos."""
    product = Product(0, "clothing", "t-shirt", colour, "plain", "cotton", "Albero", "spring")
    names, palette = list(COLOURS), np.array(list(COLOURS.values()))
    hits = 0
    for seed in range(10):
        centre = draw(product, np.random.default_rng(seed), (64, 64))[34:46, 26:38].reshape(-1, 3)
        hits += names[np.linalg.norm(palette - np.median(centre, axis=0), axis=1).argmin()] == colour
    assert hits >= 8


@pytest.mark.parametrize("changed", ["category", "colour", "pattern", "material", "brand", "season"])
def test_every_attribute_changes_the_photo(changed):
    product = Product(0, "clothing", "t-shirt", "red", "plain", "cotton", "Albero", "spring")
    other = Product(0, "clothing", "dress", "blue", "dotted", "wool", "Borea", "winter")
    changed_product = product._replace(**{changed: getattr(other, changed)})
    photos = [draw(each, np.random.default_rng(0), (64, 64)).astype(int) for each in (product, changed_product)]
    assert np.abs(photos[0] - photos[1]).max() > 15


def test_photos_of_one_category_are_alike_across_poses():
    """A nearest-centroid classifier on greyscale thumbnails beats chance by far, so silhouettes are to be seen."""
    source = Synthetic(products=600)
    rows = table(source, ["image", "category"])
    thumbs = np.stack(rows["image"]).mean(-1).reshape(600, 16, 4, 16, 4).mean((2, 4)).reshape(600, -1)
    thumbs = np.abs(thumbs - np.median(thumbs, axis=1, keepdims=True))
    category = np.array(rows["category"])
    centres = {name: thumbs[:400][category[:400] == name].mean(0) for name in SILHOUETTES}
    nearest = [min(centres, key=lambda name: np.linalg.norm(centres[name] - thumb)) for thumb in thumbs[400:]]
    assert np.mean(nearest == category[400:]) > 0.3  # always guessing t-shirt is right for 14%


def test_missing_share():
    rows = table(Synthetic(products=400, image_size=(8, 8), missing=0.2), ["image", "description"])
    assert 0.14 < np.mean([image is None for image in rows["image"]]) < 0.26
    assert 0.14 < np.mean([text == "" for text in rows["description"]]) < 0.26


def test_bad_options():
    for given in ({"products": 0}, {"missing": 2.0}, {"image_size": (4, 64)}):
        with pytest.raises(CatalignError, match="synthetic"):
            Synthetic(**given)
    with pytest.raises(CatalignError, match="'colour'"):
        list(SOURCE.chunks(10, ["color"]))


def test_the_next_product_is_predictable_above_popularity(products):
    """Products of the category that usually comes next, by popularity, against popularity alone."""
    histories = SOURCE.histories()
    assert len(histories) == 400
    assert 5 <= np.median(histories.items.lengths) <= 12
    category = np.array(products["category"])
    popularity = np.zeros(300)
    for items in histories.items:
        assert len(set(items.tolist())) == len(items)
        popularity[items[:-1]] += 1
    hits = np.zeros(2)
    for items in histories.items:
        scores = np.stack([popularity, popularity * (category == _NEXT[category[items[-2]]])])
        scores[:, items[:-1]] = -1
        hits += [items[-1] in row for row in np.argsort(-scores, axis=1)[:, :10]]
    assert hits[1] > 2 * hits[0] > 0


def test_histories_after_products_were_left_out(tmp_path):
    histories = Histories.of([("ann", [0, 3, 1]), ("bob", [2]), ("cy", [3, 2])])
    kept = histories.select(np.array([1, 3]), 4)
    assert kept.users == ["ann", "cy"]
    assert [items.tolist() for items in kept.items] == [[1, 0], [1]]
    kept.save(tmp_path)
    loaded = Histories.load(tmp_path)
    assert loaded.users == kept.users
    assert [items.tolist() for items in loaded.items] == [[1, 0], [1]]
    assert [labels.tolist() for labels in loaded.splits] == [[1, 2], [0]], "labels stay with their events"
