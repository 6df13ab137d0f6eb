from __future__ import annotations

import json

import pytest
import yaml

from catalign.config import config_folder
from catalign.errors import CatalignError
from catalign.evaluation.base import Result, load_results, merge, protocol
from catalign.reporting.overview import HEADER, overview_table

RECORD = protocol("toy", k=10)


@pytest.fixture
def line(tmp_path):
    """A function from a result's numbers to the line of its benchmark."""
    folder = tmp_path / "benchmarks" / "toy"
    (folder / "results").mkdir(parents=True)

    def make(metrics, baselines, tests=({},), published=None, **changes):
        wanted = {"task": "find", "protocol": "toy", "row": "ours", "metric": "a/f1", "label": "F1", **changes}
        (folder / "spec.yaml").write_text(yaml.safe_dump({"benchmark": "toy", "overview": wanted, "tables": {}}))
        seeds = [
            Result(
                "toy", "ours", RECORD, metrics, baselines, seeds=[seed], significance={"ours": found} if found else {}
            )
            for seed, found in enumerate(tests)
        ]
        merge(seeds).save(folder / "results" / "ours.json")
        if published:
            rows = [{"row": "Big", "metrics": published}]
            (folder / "published.json").write_text(json.dumps({"protocol": RECORD["id"], "rows": rows}))
        (cells,) = overview_table([folder]).cells
        return dict(zip(HEADER, cells, strict=True))

    make.folder = folder
    return make


def test_the_strongest_baseline_is_named_with_its_interval(line):
    tests = {"a/f1/minus/bm25": -0.1, "a/f1/minus/bm25/low": -0.2, "a/f1/minus/bm25/high": -0.05}
    later = {**tests, "a/f1/minus/bm25/low": -0.1}
    found = line({"a/f1": 0.5}, {"bm25": {"a/f1": 0.6}, "random": {"a/f1": 0.1}}, [tests, later])
    assert found["task"] == "[find](benchmarks/toy/README.md)"
    assert (found["best baseline"], found["reaches"], found["ours"]) == ("BM25", "0.600", "0.500")
    assert (found["difference"], found["95% interval"], found["ours is"]) == (
        "-0.100",
        "-0.150 to -0.050",
        "**behind**",
    )


@pytest.mark.parametrize(("low", "high", "says"), [(-0.1, 0.3, "level"), (0.1, 0.3, "ahead")])
def test_what_an_interval_says(line, low, high, says):
    tests = {"a/f1/minus/bm25/low": low, "a/f1/minus/bm25/high": high}
    assert line({"a/f1": 0.8}, {"bm25": {"a/f1": 0.6}}, [tests])["ours is"] == says


def test_published_rows_and_other_keys_compete_and_are_untested(line):
    tests = {"a/f1/minus/tfidf/low": 0.1, "a/f1/minus/tfidf/high": 0.2}
    baselines = {"tfidf": {"a/f1": 0.1, "b/f1": 0.4}}
    assert line({"a/f1": 0.5}, baselines, [tests])["ours is"] == "ahead"
    found = line({"a/f1": 0.5}, baselines, [tests], beside=["b/f1"])
    assert (found["difference"], found["95% interval"], found["ours is"]) == ("+0.100", "–", "ahead, untested")
    found = line({"a/f1": 0.5}, baselines, published={"a/f1": 0.75}, digits=2)
    assert (found["best baseline"], found["difference"]) == ("Big (published)", "-0.25")
    assert found["ours is"] == "**behind**, untested"


def test_lower_losses_are_ahead(line):
    baselines = {"start": {"loss": 3.0}, "unigram": {"loss": 2.0}}
    found = line({"loss": 1.5}, baselines, metric="loss")
    assert (found["best baseline"], found["ours is"]) == ("unigram model", "ahead, untested")


def test_benchmarks_without_results_or_overview_have_no_line(line):
    line({"a/f1": 0.5}, {"bm25": {"a/f1": 0.6}})
    (line.folder / "results" / "ours.json").unlink()
    assert overview_table([line.folder]).markdown() == "No results yet.\n"
    (line.folder / "spec.yaml").write_text("benchmark: toy\ntables: {}\n")
    assert overview_table([line.folder]).cells == []


def test_what_a_spec_names_must_be_there(line):
    for change, says in (({"row": "our"}, "did you mean 'ours'"), ({"metric": "a/f2"}, "did you mean 'a/f1'")):
        with pytest.raises(CatalignError, match=says):
            line({"a/f1": 0.5}, {"bm25": {"a/f1": 0.6}}, **change)


def test_the_committed_overview_has_every_task_with_results():
    root = config_folder().parent / "benchmarks"
    specs = [path for path in sorted(root.glob("*/spec.yaml")) if "\noverview:\n" in path.read_text()]
    with_results = [path.parent for path in specs if load_results(path.parent / "results")]
    assert len(overview_table([path.parent for path in specs]).cells) == len(with_results) >= 7
