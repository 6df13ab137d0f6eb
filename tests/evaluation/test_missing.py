from __future__ import annotations

import numpy as np
import pytest

from catalign.embeddings.fusion.concat import Concat
from catalign.embeddings.fusion.weighted import Weighted
from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.missing import QUERIES, losing, missing, query_texts, view

SHAPES = 16


class Views:
    """Embeds the description and the changed photo of each product as the vectors that a test gave it."""

    def __init__(self, toy, text, image):
        self.texts = dict(zip(toy.text("description"), text, strict=True))
        self.photos = {view(photo).tobytes(): vector for photo, vector in zip(toy.images, image, strict=True)}

    def knows(self, texts):
        return np.array([bool(text) and text in self.texts for text in texts])

    def text(self, texts):
        return np.array([self.texts[text] for text in texts], dtype=np.float32)

    def images(self, photos):
        return np.array([self.photos[photo.tobytes()] for photo in photos], dtype=np.float32)


@pytest.fixture
def described(catalogue):
    """A function to a catalogue whose products have descriptions, "about 0" and so on."""

    def make(count, **given):
        toy = catalogue([f"title {row}" for row in range(count)], **given)
        toy.fields = {"title": 0.5, "description": 0.5}
        columns = {"title": toy.titles, "description": [f"about {row}" for row in range(count)]}
        toy.text = columns.__getitem__
        return toy

    return make


@pytest.fixture
def planted(described, context):
    """16 shapes x 16 colours: titles tell the shape, photos the colour, and so do the queries."""
    shape, colour = np.divmod(np.arange(SHAPES**2), SHAPES)
    text, image = np.eye(2 * SHAPES)[shape], np.eye(2 * SHAPES)[SHAPES + colour]
    toy = described(SHAPES**2)
    return context(toy, {"text": text, "image": image}, embedder=Views(toy, text, image), name="ours")


@pytest.fixture
def noisy(described, context, unit_rows):
    """50 products of 30 groups, some of them without title or photo, and queries near what they lack."""
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 30, 50)
    centre = rng.normal(size=(30, 8))[groups]
    text, image, asked_text, asked_image = (unit_rows(centre + rng.normal(size=(50, 8))) for _ in range(4))
    has = {"has_text": rng.random(50) < 0.8, "has_image": rng.random(50) < 0.8}
    toy = described(50, groups=groups, split=["train" if row % 4 == 0 else "test" for row in range(50)], **has)
    return context(toy, {"text": text, "image": image}, embedder=Views(toy, asked_text, asked_image))


def values(result, query, documents, metric="recall@10"):
    (value,) = result.metrics[f"{query}/{documents}/known-item/{metric}"]
    return value


def test_fused_documents_beat_either_where_each_modality_tells_a_half(planted):
    (result,) = missing(planted)
    # A shape, or a colour, fits 16 products, ranked in catalogue order: 10 of them are in the top 10.
    half, half_mrr = 10 / SHAPES, sum(1 / rank for rank in range(1, 11)) / SHAPES
    for query, alone in (("text-query", "text_only"), ("image-query", "image_only")):
        for documents in (alone, "complete"):
            assert values(result, query, documents) == half
            assert values(result, query, documents, "mrr@10") == pytest.approx(half_mrr)
    assert values(result, "multimodal-query", "complete", "mrr@10") == 1.0
    for documents in ("text_only", "image_only", "missing_image_100", "missing_text_100"):
        assert values(result, "multimodal-query", documents) == half
        assert values(result, "multimodal-query", documents, "mrr@10") == pytest.approx(half_mrr)


@pytest.mark.parametrize("name", ["text", "image"])
def test_a_product_that_lost_something_is_found_by_what_is_left(planted, name):
    (result,) = missing(planted, shares=[0.125, 0.5])
    shape, colour = np.divmod(np.arange(SHAPES**2), SHAPES)
    left = shape if name == "image" else colour
    for share, kind in ((0.125, "12.5"), (0.5, "50")):
        lost = losing(np.ones(SHAPES**2, dtype=bool), share)
        # A complete document scores 1. One that lost its photo scores 0.71, as do all of its shape that lost theirs.
        ranks = [1 + (lost[:row] & (left[:row] == left[row])).sum() if lost[row] else 1 for row in range(SHAPES**2)]
        expected = np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])
        found = values(result, "multimodal-query", f"missing_{name}_{kind}", "mrr@10")
        assert found == pytest.approx(expected)
        assert found < 1


def plain(context, fusion, gallery):
    """recall@10 and mrr@10 by their definitions, one document and one query at a time."""
    toy, store = context.catalogue, context.store
    pool = toy.rows("test") if gallery == "split" else np.arange(len(toy))
    has = {name: store.present(name)[pool] for name in ("text", "image")}
    lost = {name: losing(mask, 0.5) for name, mask in has.items()}
    queries = [row for row in toy.rows("test") if toy.has_image[row]]
    expected = {}
    for kind in ("complete", "missing_text_50", "missing_image_50"):
        documents = {}
        for position, row in enumerate(pool):
            named = [name for name in has if has[name][position]]
            named = [name for name in named if kind != f"missing_{name}_50" or not lost[name][position]]
            if named:
                documents[position] = fusion({name: store[name][row : row + 1] for name in named})[0]
        for query, parts in QUERIES.items():
            rows = []
            for row in queries:
                views = {"text": context.embedder.text([f"about {row}"])}
                views["image"] = context.embedder.images([view(toy.images[row])])
                asked = fusion({part: views[part] for part in parts})[0].astype(float)
                order = sorted(documents, key=lambda p, q=asked: (-float(q @ documents[p].astype(float)), p))
                same = {p for p, other in enumerate(pool) if toy.groups[other] == toy.groups[row]}
                ranks = [rank for rank, p in enumerate(order[:10], 1) if p in same]
                rows.append((len(ranks) / len(same), 1 / ranks[0] if ranks else 0.0))
            expected[query, kind] = np.mean(rows, axis=0)
    return expected


@pytest.mark.parametrize("gallery", ["split", "all"])
@pytest.mark.parametrize("kind", [Weighted, Concat])
def test_metrics_agree_with_their_definition(noisy, kind, gallery):
    noisy.fusion = kind().fit({name: noisy.store[name] for name in ("text", "image")})
    (result,) = missing(noisy, shares=[0.5], gallery=gallery)
    for (query, documents), (recall, mrr) in plain(noisy, noisy.fusion, gallery).items():
        assert values(result, query, documents) == pytest.approx(recall), (query, documents)
        assert values(result, query, documents, "mrr@10") == pytest.approx(mrr), (query, documents)
    toy, rows = noisy.catalogue, noisy.catalogue.rows("test")
    pool = rows if gallery == "split" else np.arange(len(toy))
    assert result.details["queries"] == toy.has_image[rows].sum()
    assert result.details["queries_left_out"] == (~toy.has_image[rows]).sum()
    assert result.details["with_text"] == toy.has_text[pool].sum()
    assert result.details["gallery"] == len(pool)


@pytest.mark.parametrize("name", ["text", "image"])
def test_documents_that_all_lost_one_modality_rank_as_the_other_alone(noisy, name):
    (result,) = missing(noisy)
    other = {"text": "image", "image": "text"}[name]
    for query in ("text-query", "image-query"):
        for metric in ("recall@10", "mrr@10"):
            assert values(result, query, f"missing_{name}_100", metric) == values(
                result, query, f"{other}_only", metric
            )
    assert values(result, "multimodal-query", f"{other}_only") == values(result, f"{other}-query", f"{other}_only")


def test_who_loses_something_is_drawn_once_and_for_all():
    has = np.random.default_rng(5).random(101) < 0.6
    lost = {share: losing(has, share) for share in (0.25, 0.5, 1.0)}
    for share, mask in lost.items():
        assert mask.sum() == round(share * has.sum())
        assert not mask[~has].any()
        assert np.array_equal(mask, losing(has, share))
    assert not (lost[0.25] & ~lost[0.5]).any()
    assert np.array_equal(lost[1.0], has)
    assert np.ptp(np.flatnonzero(lost[0.25])) > 50  # not the first ones


def test_a_product_that_lost_everything_still_counts_as_relevant(described, context):
    toy = described(3, has_text=np.array([True, False, True]))
    eye = np.eye(3)
    found = context(toy, {"text": eye, "image": eye}, embedder=Views(toy, eye, eye))
    (result,) = missing(found)
    assert values(result, "image-query", "complete") == 1.0
    assert values(result, "image-query", "missing_image_100") == pytest.approx(2 / 3)
    assert values(result, "text-query", "text_only") == pytest.approx(2 / 3)


def test_a_view_is_the_mirrored_middle():
    photos = np.arange(2 * 20 * 10 * 3, dtype=np.int64).reshape(2, 20, 10, 3)
    assert view(photos).shape == (2, 16, 8, 3)
    assert np.array_equal(view(photos)[1, 0, 0], photos[1, 2, 8])
    assert np.array_equal(view(photos[1]), view(photos)[1])


def test_a_catalogue_of_one_text_is_asked_by_half_of_its_words(catalogue, described):
    toy = catalogue(["red shoe for men", "shoe", "blue hat"])
    assert query_texts(toy, np.array([2, 0, 1])) == (
        ["blue", "red for", ""],
        "every second word of the title, from the first",
    )
    toy = described(3)
    assert query_texts(toy, np.array([2])) == (["about 2"], "description")
    toy.fields["description"] = 0.0
    assert query_texts(toy, np.array([2]))[0] == ["title"]
    assert query_texts(toy, np.array([2]), "description") == (["about 2"], "description")
    for field in ("title", "descriptoin"):
        with pytest.raises(CatalignError, match="known: description"):
            query_texts(toy, np.array([2]), field)


def test_products_without_a_view_are_no_queries(planted):
    planted.catalogue.text("description")[3] = ""
    planted.catalogue.has_image[5] = False
    (result,) = missing(planted)
    assert result.details["queries"] == SHAPES**2 - 2
    assert result.details["queries_left_out"] == 2
    assert result.details["gallery"] == SHAPES**2


def test_baselines(planted, context, unit_rows):
    toy = planted.catalogue
    toy.titles[:] = toy.text("description")[:]  # word match finds every product, by the number in its title
    noise = unit_rows(np.random.default_rng(0).normal(size=(4 * SHAPES**2, 8))).reshape(4, -1, 8)
    vectors = {name: planted.store[name][:] for name in ("text", "image")}
    untrained = {"text": noise[0], "image": noise[1]}
    found = context(toy, vectors, untrained, embedder=planted.embedder, untrained_embedder=Views(toy, *noise[2:]))
    (result,) = missing(found)
    assert set(result.baselines) == {"random", "untrained", "tfidf", "pixels"}
    assert set(result.baselines["random"]) == set(result.baselines["untrained"]) == set(result.metrics)
    assert result.baselines["random"]["text-query/missing_image_50/known-item/recall@10"] == [10 / SHAPES**2]
    assert result.baselines["untrained"]["text-query/complete/known-item/recall@10"][0] < 0.1
    assert result.baselines["tfidf"]["text-query/text_only/known-item/mrr@10"] == [1.0]
    assert set(result.baselines["pixels"]) == {f"image-query/image_only/known-item/{m}@10" for m in ("recall", "mrr")}


def test_raw_pixels_find_a_photo_of_one_colour_by_its_view(planted):
    toy = planted.catalogue
    colours = np.random.default_rng(0).integers(0, 256, (len(toy), 1, 1, 3), dtype=np.uint8)
    toy.images = colours.repeat(16, axis=1).repeat(12, axis=2)
    planted.embedder = Views(toy, planted.store["text"], planted.store["image"])
    (result,) = missing(planted, max_queries=20)
    assert result.baselines["pixels"]["image-query/image_only/known-item/recall@10"] == [1.0]
    assert result.baselines["pixels"]["image-query/image_only/known-item/mrr@10"] == [1.0]


def test_choices_change_the_protocol_and_drawn_queries_are_always_the_same(noisy):
    options = ({}, {"gallery": "all"}, {"shares": [0.5]}, {"split": "train"}, {"max_queries": 9})
    results = [missing(noisy, **given)[0] for given in options]
    assert len({result.protocol["id"] for result in results}) == len(options)
    assert results[-1].details["queries"] == 9
    assert results[-1].metrics == missing(noisy, max_queries=9)[0].metrics


@pytest.mark.parametrize("shares", [[0.0], [1.5]])
def test_a_share_out_of_range(noisy, shares):
    with pytest.raises(CatalignError, match=r"evaluation\.missing\.shares"):
        missing(noisy, shares=shares)


def test_skipped_says_what_it_needs(described, context):
    toy, eye = described(2), np.eye(2)
    both, views = {"text": eye, "image": eye}, Views(toy, eye, eye)
    with pytest.raises(Skipped, match="needs image embeddings"):
        missing(context(toy, {"text": eye}, embedder=views))
    with pytest.raises(Skipped, match="needs an embedder"):
        missing(context(toy, both))
    with pytest.raises(Skipped, match="this run's takes image"):
        missing(context(toy, both, embedder=views, fusion=Weighted(weights={"image": 1}).fit(both)))
    bare = described(2, has_image=np.zeros(2, dtype=bool))
    with pytest.raises(Skipped, match="no product of the split has both"):
        missing(context(bare, both, embedder=Views(bare, eye, eye)))
    bare = described(2, has_text=np.zeros(2, dtype=bool))
    with pytest.raises(Skipped, match="no document of the gallery has a text"):
        missing(context(bare, both, embedder=Views(bare, eye, eye)))
