"""The committed results of the newer pretext tasks stand above chance and above the untrained encoders."""

import math
from pathlib import Path

import pytest

from catalign.evaluation.base import Result

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks" / "results"


def result(protocol):
    return Result.load(RESULTS / protocol / "tasks.json")


@pytest.mark.parametrize(
    ("loss", "chance"),
    [
        ("image/barlow_twins/loss", 1.0),  # views with nothing in common
        ("text/simcse/loss", math.log(128)),
        ("match/image_text_matching/loss", -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3),  # one pair in three matches
    ],
)
def test_held_out_losses(loss, chance):
    found = result("pretext")
    assert found.mean(loss) < 0.7 * min(chance, found.baselines["start"][loss][0])


@pytest.mark.parametrize("features", ["image_features", "text_features"])
def test_frozen_features(features):
    found = result("probe")
    for attribute in ("category", "colour"):
        key = f"{attribute}/{features}/linear/accuracy"
        assert found.mean(key) > found.baselines["majority"][key][0] + 0.1
        assert found.mean(key) >= found.baselines["untrained"][key][0]


def test_matching():
    found = result("retrieval")
    for key in ("text-to-image/recall@10", "image-to-text/recall@10"):
        assert found.mean(key) > 5 * max(found.baselines[name][key][0] for name in ("random", "untrained"))
