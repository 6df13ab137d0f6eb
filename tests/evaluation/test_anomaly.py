from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from catalign.embeddings.fusion.concat import Concat
from catalign.errors import CatalignError
from catalign.evaluation.anomaly import anomaly, placements
from catalign.evaluation.base import Skipped

COUNT, CLASSES = 320, 6


class Noise:
    def text(self, texts: list[str]) -> np.ndarray:
        vectors = np.random.default_rng(len(texts)).normal(size=(len(texts), 16))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def toy(catalogue, context, unit_rows):
    """Title and photo of a product lie near each other, those of a category not far off."""
    rng = np.random.default_rng(0)
    category = rng.integers(0, CLASSES, COUNT)
    product = 2 * rng.normal(size=(CLASSES, 16))[category] + rng.normal(size=(COUNT, 16))
    text, image = (unit_rows(product + 0.1 * rng.normal(size=(COUNT, 16))) for _ in range(2))
    attributes = {
        "category": np.array(list("abcdef"), dtype=object)[category],
        "parent": np.array(["one", "two"], dtype=object)[category % 2],
        "noise": np.array(["x", "y"], dtype=object)[rng.integers(0, 2, COUNT)],
    }
    splits = [("train", "test", "train", "val")[row % 4] for row in range(COUNT)]
    toy = catalogue([f"first{row} second" for row in range(COUNT)], splits, attributes=attributes)
    vectors = {"text": text, "image": image}
    noise = {name: unit_rows(rng.normal(size=(COUNT, 16))) for name in vectors}
    return context(
        toy, vectors, noise, embedder=Noise(), untrained_embedder=Noise(), fusion=Concat().fit(vectors), name="ours"
    )


def test_spoilt_listings_stand_out_where_a_signal_can_tell(toy):
    (result,) = anomaly(toy, parent="parent")
    value = {key: values[0] for key, values in result.metrics.items()}
    assert result.protocol["category"] == "category"  # what neighbours share, not the noise
    for kind in ("photo", "title", "photo_hard", "title_hard", "words"):
        assert value[f"{kind}/agreement/auroc"] > 0.95
        assert value[f"{kind}/combined/auroc"] > 0.9
    for kind in ("category", "category_hard"):
        assert value[f"{kind}/category/auroc"] > 0.95
        assert value[f"{kind}/combined/auroc"] > 0.9
        assert 0.3 < value[f"{kind}/agreement/auroc"] < 0.7
    assert set(result.baselines) == {"random", "untrained", "tfidf", "pixels"}
    assert result.baselines["random"]["photo/agreement/ap"] == [0.1]
    assert 0.3 < result.baselines["untrained"]["photo/agreement/auroc"][0] < 0.7
    assert "likelihood" in result.details["left_out"]
    assert result.details["spoilt"] == dict.fromkeys(result.protocol["kinds"], 8)


def test_draws_are_averaged_and_choices_change_the_protocol(toy):
    single = [anomaly(toy, draws=1, seed=seed)[0].metrics["photo/agreement/ap"][0] for seed in (0, 1)]
    (both,) = anomaly(toy, draws=2)
    assert both.metrics["photo/agreement/ap"] == [pytest.approx(np.mean(single))]
    options = ({}, {"share": 0.2}, {"parent": "parent"}, {"category": "parent"})
    assert len({anomaly(toy, **{"draws": 1, **given})[0].protocol["id"] for given in options}) == len(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"category": "categry"}, "did you mean 'category'"),
        ({"parent": "parnt"}, "did you mean 'parent'"),
        ({"share": 1.5}, r"evaluation\.anomaly\.share"),
    ],
)
def test_mistakes_are_told(toy, options, says):
    with pytest.raises(CatalignError, match=says):
        anomaly(toy, **options)


def test_skipped_without_an_alignment(catalogue, context):
    bare = catalogue(["a", "b"], attributes={"category": np.array(["x", "y"], dtype=object)})
    with pytest.raises(Skipped, match="did not align"):
        anomaly(context(bare, {"text": np.eye(2)}))


def test_auroc_is_the_mean_over_its_cases():
    rng = np.random.default_rng(0)
    truth, signal = rng.random(200) < 0.2, rng.integers(0, 12, 200)  # many ties
    cases = placements(truth, signal)
    assert cases.shape == (truth.sum(),)
    assert cases.mean() == pytest.approx(roc_auc_score(truth, signal))


def test_a_row_is_tested_against_the_others(toy):
    (result,) = anomaly(toy, category="category", draws=2)
    ours, key = result.significance["ours"], "photo/combined/auroc"
    assert ours[f"{key}/low"][0] < result.metrics[key][0] < ours[f"{key}/high"][0]
    difference = result.metrics[key][0] - result.baselines["untrained"][key][0]
    assert ours[f"{key}/minus/untrained"] == [pytest.approx(difference)]
    assert ours[f"{key}/minus/untrained/p"][0] < 0.001
