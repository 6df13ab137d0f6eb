from __future__ import annotations

import numpy as np
import pytest

from catalign.errors import CatalignError
from catalign.evaluation.attributes import attributes
from catalign.evaluation.base import Skipped

KINDS = ("shirt", "shoe", "hat")
BRANDS = ("acme", "zeta", "nova")


class Brands:
    """Knows brands and kinds by heart; a text of neither is unknown to it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def knows(self, texts: list[str]) -> np.ndarray:
        return np.array([bool(text) for text in texts], dtype=bool)

    def text(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        rows = [[float(word in text.split()) for word in (*BRANDS, *KINDS)] for text in texts]
        return np.array(rows, dtype=np.float32) + 1e-3


@pytest.fixture
def toy(catalogue, context):
    """Brand and kind go together in nine cases of ten; photos tell nothing; titles are brand and kind."""
    rng = np.random.default_rng(3)
    count = 300
    kinds = rng.integers(0, 3, count)
    brands = np.where(rng.random(count) < 0.9, kinds, rng.integers(0, 3, count))
    splits = np.array(["train", "val", "test"])[np.arange(count) % 3].tolist()
    names = np.array(KINDS, dtype=object)[kinds]
    names[2] = ""
    titles = [f"{BRANDS[brand]} {KINDS[kind]}s" for brand, kind in zip(brands, kinds)]
    titles[5] = "Shirts"  # a test product of which masking leaves nothing
    toy = catalogue(titles, splits, attributes={"kind": names})
    vectors = {"text": rng.normal(size=(count, 6)), "image": rng.normal(size=(count, 6))}
    return context(toy, vectors, vectors, embedder=Brands(), untrained_embedder=Brands(), name="ours")


def test_what_is_masked_cannot_be_copied(toy):
    (result,) = attributes(toy, min_count=5)
    asked = set(toy.embedder.asked)
    assert asked <= set(BRANDS)
    catalogue = toy.catalogue
    rows = [row for row in catalogue.rows("test") if catalogue.attributes["kind"][row]]
    # All that is left is the brand, which tells the kind nine times of ten; the product without a text is wrong.
    right = [BRANDS.index(catalogue.titles[row].split()[0]) == KINDS.index(catalogue.attributes["kind"][row])
             for row in rows if row != 5]  # fmt: skip
    expected = sum(right) / len(rows)
    for method in ("knn", "linear"):
        assert result.metrics[f"kind/text/{method}/accuracy"] == [pytest.approx(expected)]
        assert result.baselines["tfidf"][f"kind/text/{method}/accuracy"] == [pytest.approx(expected)]
        assert result.metrics[f"kind/image/{method}/accuracy"][0] < 0.6
    assert result.details["kind"]["test_rows"] == len(rows) == 99
    tests, key = result.significance["ours"], "kind/text/linear/accuracy"
    assert tests[f"{key}/low"][0] < expected < tests[f"{key}/high"][0]
    assert tests[f"{key}/minus/tfidf"] == [0.0], "both answer every product alike"
    assert tests[f"{key}/minus/majority"][0] > 0.3


def test_coverage_and_precision_agree_with_a_loop(toy):
    (result,) = attributes(toy, inputs=["text"], methods=["knn"], precision=0.85, min_count=5)
    coverage, precision = (result.metrics[f"kind/text/knn/{name}"][0] for name in ("coverage", "precision"))
    assert 0.85 - 0.1 < precision <= 1
    assert 0 < coverage < 1  # the product without a text is never filled
    (never,) = attributes(toy, inputs=["image"], methods=["knn"], precision=1.0, min_count=5)
    assert never.metrics["kind/image/knn/coverage"][0] < 0.2


def test_majority_and_chosen_inputs(toy):
    (result,) = attributes(toy, inputs=["fused"], methods=["linear"], min_count=5)
    assert set(result.baselines) == {"majority", "untrained"}
    assert set(result.metrics) == {f"kind/fused/linear/{m}" for m in ("accuracy", "macro_f1", "coverage", "precision")}
    majority = result.baselines["majority"]
    assert majority["kind/fused/linear/coverage"] == [0]
    assert majority["kind/fused/linear/precision"] == [1]
    assert majority["kind/fused/linear/accuracy"][0] < 0.5


def test_choices_change_the_protocol(toy):
    options = ({}, {"precision": 0.9}, {"min_count": 6}, {"seed": 1})
    results = [attributes(toy, inputs=["image"], **{"min_count": 5, **given})[0] for given in options]
    assert len({result.protocol["id"] for result in results}) == len(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attributes": ["kinds"]}, "did you mean 'kind'"),
        ({"inputs": ["txt"]}, "did you mean 'text'"),
        ({"methods": ["lineer"]}, "did you mean 'linear'"),
        ({"precision": 95}, r"evaluation\.attributes\.precision is 95"),
    ],
)
def test_mistakes_are_told(toy, options, says):
    with pytest.raises(CatalignError, match=says):
        attributes(toy, **options)


def test_skipped_says_what_it_needs(toy):
    with pytest.raises(Skipped, match="no attribute"):
        attributes(toy, min_count=1000)
    toy.embedder = None
    with pytest.raises(Skipped, match="needs an embedder"):
        attributes(toy)
