"""Few-shot episodes: what is drawn, what each learner makes of them, and that only held-out classes are asked."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.neighbors import NearestCentroid

from catalign.config import StageConfig
from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.few_shot import few_shot
from catalign.evaluation.learners import META, PLAIN, Pool, Shape, accuracies, draw_episodes, linear

KINDS = [f"kind{n}" for n in range(12)]
NEW = KINDS[:5]


class Photos:
    """Embeds a text as noise of its own, and knows every word."""

    def knows(self, texts):
        return np.array([bool(text) for text in texts], dtype=bool)

    def text(self, texts):
        return np.stack([np.random.default_rng(crc32(text.encode())).normal(size=12) for text in texts])


@pytest.fixture
def toy(catalogue, context, tmp_path):
    """Twelve kinds of 30 products; photos say the kind, titles are its name and a number."""

    def make(without=None, icecat=False):
        rng = np.random.default_rng(0)
        kinds = np.arange(360) % 12
        titles = [f"{KINDS[kind]} number {row}" for row, kind in enumerate(kinds)]
        groups = np.arange(360)
        groups[24] = 0  # the same product as the first one
        shop = catalogue(titles, "train", groups, attributes={"kind": np.array(KINDS, dtype=object)[kinds]})
        photos = np.eye(12)[kinds] + rng.normal(size=(360, 12)) * 0.05
        stages = {"align": StageConfig(objectives={"it": {"name": "contrastive"}}, without=without or {})}
        config = SimpleNamespace(name="x", data=SimpleNamespace(root=str(tmp_path)), stages=stages)
        if icecat:
            (tmp_path / "icecat-search").mkdir()
            brands = np.repeat([f"Brand{n}" for n in range(6)], 25)
            table = pd.DataFrame({"title": [f"{b} cable {n}" for n, b in enumerate(brands)], "supplier": brands})
            table.to_parquet(tmp_path / "icecat-search" / "products.parquet")
        vectors = {"image": photos, "text": rng.normal(size=(360, 12))}
        return context(shop, vectors, embedder=Photos(), run=SimpleNamespace(config=config, stages={}))

    return make


def test_episodes_are_of_distinct_classes_and_products_and_the_same_for_one_seed():
    labels, shape = np.arange(200) % 10, Shape(5, 2, 3)
    drawn = list(islice(draw_episodes(labels, shape, 0), 50))
    for support, queries in drawn:
        assert support.shape == (5, 2)
        assert queries.shape == (5, 3)
        both = np.concatenate([support, queries], axis=1)
        assert len(np.unique(both)) == 25
        assert (labels[both] == labels[both[:, :1]]).all(), "a row is a class"
        assert len(set(labels[both[:, 0]].tolist())) == 5
    again = list(islice(draw_episodes(labels, shape, 0), 50))
    assert all((a.support == b.support).all() for a, b in zip(drawn, again, strict=True))
    assert not (drawn[0].support == next(draw_episodes(labels, shape, 1)).support).all()
    with pytest.raises(CatalignError, match=r"3 classes have enough products, an episode needs 5"):
        next(draw_episodes(np.arange(90) % 3, shape, 0))


def test_centroid_is_the_nearest_mean():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.arange(120) % 4
    for support, queries in islice(draw_episodes(labels, Shape(4, 5, 10), 0), 5):
        known, asked = features[support.ravel()], features[queries.ravel()]
        means = known.reshape(4, 5, 6).mean(1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        expected = NearestCentroid().fit(means, np.arange(4)).predict(asked)
        assert (PLAIN["centroid"](known, asked, 4) == expected).all()


def test_words_that_no_example_has_change_nothing():
    rng = np.random.default_rng(0)
    dense = rng.random((60, 40)).astype(np.float32) * (rng.random((60, 40)) < 0.1)
    dense[:, 0] += 0.1
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    drawn = list(islice(draw_episodes(np.arange(60) % 3, Shape(3, 1, 5), 0), 20))
    for learner in PLAIN.values():
        assert (accuracies(learner, csr_matrix(dense), drawn) == accuracies(learner, dense, drawn)).all()


@pytest.mark.parametrize("method", META)
def test_meta_learning_finds_what_tells_classes_apart(method, monkeypatch):
    """Eight loud features that say nothing hide four quiet ones that say the class: a map learns to leave them out."""
    monkeypatch.setattr("catalign.evaluation.learners.ITERATIONS", 100)
    monkeypatch.setattr("catalign.evaluation.learners.RATE", 1e-2)
    monkeypatch.setattr("catalign.evaluation.learners.CHECKED", 50)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 4))
    labels = np.repeat(np.arange(30), 25)
    quiet = centres[labels] + 0.3 * rng.normal(size=(750, 4))
    features = np.concatenate([quiet, 3 * rng.normal(size=(750, 8))], axis=1).astype(np.float32)
    old = labels < 20
    shape = Shape(5, 5, 10)
    learner = META[method](Pool(features[old], labels[old]), shape, 0)
    drawn = list(islice(draw_episodes(labels[~old], shape, 0), 60))
    plain = accuracies(linear, features[~old], drawn).mean()
    assert accuracies(learner, features[~old], drawn).mean() > plain + 0.1


def test_only_classes_that_alignment_left_out_are_asked(toy):
    sizes = {"attribute": "kind", "ways": 3, "shots": [1], "queries": 8, "episodes": 20}
    (result,) = few_shot(toy({"kind": NEW}), methods=["centroid", "linear"], **sizes)
    assert result.protocol["classes"] == NEW
    assert result.details["products"] == 149, "one product of each group"
    assert result.details["meta_learning"] == {"classes": 7, "products": 210}
    for method in ("centroid", "linear"):
        assert result.metrics[f"3-way-1-shot/image/{method}/accuracy"] == [1.0]
        assert result.metrics[f"3-way-1-shot/text/{method}/accuracy"][0] < 0.5, "the name of the kind is masked"
        assert result.baselines["tfidf"][f"3-way-1-shot/text/{method}/accuracy"][0] < 0.5
        assert result.baselines["random"][f"3-way-1-shot/fused/{method}/accuracy"] == [pytest.approx(1 / 3)]
    low, high = (result.significance["ours"][f"3-way-1-shot/text/linear/accuracy/{end}"][0] for end in ("low", "high"))
    assert low < result.metrics["3-way-1-shot/text/linear/accuracy"][0] < high
    with pytest.raises(Skipped, match=r"alignment has seen all values of kind\n.*stages\.align\.without"):
        few_shot(toy(), **sizes)
    with pytest.raises(CatalignError, match=r"unknown name in evaluation\.few_shot\.methods: 'centriod'"):
        few_shot(toy({"kind": NEW}), methods=["centriod"], **sizes)
    with pytest.raises(CatalignError, match=r"5 classes have enough products, an episode needs 6"):
        few_shot(toy({"kind": NEW}), **{**sizes, "ways": 6})


def test_another_catalogue_is_told_apart_by_the_same_encoder(toy):
    sizes = {"attribute": "kind", "ways": 3, "shots": [1, 5], "queries": 8, "episodes": 10}
    first, second = few_shot(toy({"kind": NEW}, icecat=True), methods=["centroid"], **sizes)
    assert (first.row, second.row) == ("x", "x-icecat")
    assert first.protocol["id"] != second.protocol["id"]
    assert second.protocol["classes"] == [f"Brand{n}" for n in range(6)]
    assert set(second.metrics) == {f"3-way-{k}-shot/text/centroid/accuracy" for k in (1, 5)}
