from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.pretext import pretext


def entry(step: int, **values: float) -> dict:
    return {
        "step": step,
        "seconds": step * 2.0,
        "values": {key.replace("__", "/"): value for key, value in values.items()},
    }


@pytest.fixture
def run(tmp_path, catalogue, context):
    def make(**stages: list[dict]):
        folders = {}
        for name, entries in stages.items():
            folders[name] = tmp_path / name
            folders[name].mkdir()
            (folders[name] / "metrics.json").write_text(json.dumps(entries))
        stage = SimpleNamespace(objectives={})
        trainer = SimpleNamespace(batch_size=8, eval_batches=2)
        config = SimpleNamespace(name="ours", stages=dict.fromkeys(stages, stage), trainer_of=lambda name: trainer)
        found = SimpleNamespace(config=config, stages=folders)
        return context(catalogue(["a", "b"]), {"image": np.eye(2), "text": np.eye(2)}, run=found)

    return make


TEXT = [
    entry(0, val__mlm__loss=8.0, val__mlm__unigram_loss=6.5, val__mlm__accuracy=0.0, val__nsp__loss=0.7),
    entry(5, train__mlm__loss=5.0),
    entry(
        10, val__mlm__loss=3.0, val__mlm__unigram_loss=6.0, val__mlm__accuracy=0.4, val__nsp__loss=0.2, monitor__x=1.0
    ),
    entry(11, train__mlm__loss=1.0),
]


def test_start_and_end_of_every_objective(run):
    (result,) = pretext(run(text=TEXT, image=[entry(0, val__simclr__loss=5.0), entry(4, val__simclr__loss=2.0)]))
    assert result.row == "ours"
    assert result.metrics == {
        "text/mlm/loss": [3.0],
        "text/mlm/accuracy": [0.4],
        "text/mlm/perplexity": [pytest.approx(math.exp(3))],
        "text/nsp/loss": [0.2],
        "image/simclr/loss": [2.0],
    }
    start = result.baselines["start"]
    assert start["text/mlm/loss"] == [8.0]
    assert start["text/mlm/perplexity"] == [pytest.approx(math.exp(8))]
    assert start["image/simclr/loss"] == [5.0]
    unigram = result.baselines["unigram"]
    assert unigram == {"text/mlm/loss": [6.0], "text/mlm/perplexity": [pytest.approx(math.exp(6))]}
    assert result.details["text"] == {"steps": 10, "seconds": 20.0}


def test_a_value_that_is_not_finite_is_absent(run):
    (result,) = pretext(
        run(text=[entry(0, val__nsp__loss=float("nan"), val__mlm__loss=2.0), entry(1, val__mlm__loss=1.0)])
    )
    assert result.baselines["start"] == {"text/mlm/loss": [2.0]}


def test_stages_without_a_validation_loss(run):
    (result,) = pretext(run(text=TEXT, image=[entry(0, train__simclr__loss=1.0)]))
    assert result.details["image"] == "no validation metrics"
    with pytest.raises(Skipped, match="no finished stage"):
        pretext(run(other=[]))


def test_unknown_stage_names_the_nearest(run):
    with pytest.raises(CatalignError, match="did you mean 'text'"):
        pretext(run(text=TEXT), stages=["texts"])
