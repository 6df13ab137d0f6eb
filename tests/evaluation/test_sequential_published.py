"""The real logs: our reading of data, split, masking and metrics gives the published numbers of popularity."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from catalign.artifacts import read_json
from catalign.config import compose, config_folder
from catalign.data.catalogue import Catalogue
from catalign.data.interactions import TRAIN
from catalign.evaluation import sequential as protocol
from catalign.evaluation.base import Context
from catalign.evaluation.recommenders import popularity
from catalign.evaluation.target_metrics import rank_metrics
from catalign.reporting.specs import tables_of
from catalign.retrieval.targets import target_ranks

LOGS = {"beauty": "Beauty", "sports": "Sports_and_Outdoors", "toys": "Toys_and_Games"}
BENCHMARK = config_folder().parent / "benchmarks" / "sequential"
needs_data = pytest.mark.skipif(
    not (Path(os.environ.get("CATALIGN_DATA", "absent")) / "amazon-sequences").is_dir(), reason="needs CATALIGN_DATA"
)


def published(name: str, ending: str = "test") -> dict:
    start = f"sequential-{name}-{ending}-"
    (group,) = (g for g in read_json(BENCHMARK / "published.json") if g["protocol"].rpartition("-")[0] + "-" == start)
    return group


@pytest.fixture(scope="module")
def catalogue_of(tmp_path_factory):
    """A function to the catalogue of a real log."""

    @cache
    def load(name: str) -> Catalogue:
        cache_folder = tmp_path_factory.mktemp("cache")
        config = compose([f"data=amazon_{name}", "experiment=quickstart", f"data.cache={cache_folder}"])
        return Catalogue.load(config.data)

    return load


def ranks_of(catalogue, *labels):
    cases = catalogue.histories.cases("test")
    return target_ranks(popularity(catalogue.histories, len(catalogue), *labels), cases.targets, hidden=cases.contexts)


@needs_data
@pytest.mark.parametrize("name", LOGS)
def test_popularity_over_all_events_is_the_published_one(catalogue_of, name):
    found = rank_metrics(ranks_of(catalogue_of(name)), (5, 10, 20))
    (row,) = (row for row in published(name)["rows"] if row["row"] == "PopRec")
    assert len(row["metrics"]) == 6
    for key, value in row["metrics"].items():
        tie = 1e-4 if (name, key) == ("toys", "toys/hr@20") else 0
        assert round(found[key.removeprefix(f"{name}/")], 4) == pytest.approx(value, abs=tie + 1e-9), key


@needs_data
def test_popularity_over_train_events_is_less(catalogue_of):
    found = rank_metrics(ranks_of(catalogue_of("beauty"), TRAIN), (5, 10))
    values = [round(found[key], 4) for key in ("hr@5", "ndcg@5", "hr@10", "ndcg@10")]
    assert values == [0.0075, 0.0041, 0.0115, 0.0055]


@needs_data
@pytest.mark.parametrize("name", LOGS)
def test_published_rows_are_of_this_protocol(catalogue_of, name, monkeypatch):
    """The ids in published.json are those that a run on the real log gets."""
    catalogue = catalogue_of(name)
    scorer = popularity(catalogue.histories, len(catalogue))
    monkeypatch.setattr(protocol, "embedded", lambda *given: scorer)
    monkeypatch.setattr(protocol, "_baselines", lambda *given: {})
    embedder = SimpleNamespace(model=SimpleNamespace(encoders=("behaviour",)))
    for negatives, ending in ((None, "test"), (99, "test-99-uniform")):
        (result,) = protocol.sequential(Context(catalogue, None, embedder=embedder), negatives=negatives)
        assert result.protocol["id"] == published(name, ending)["protocol"]
        assert result.details["targets_in_context"] == 0  # no event is repeated, so seen handling is not in question


def test_committed_published_rows():
    """Values that the data's description quotes, and a source and numbers for every row."""
    groups = read_json(BENCHMARK / "published.json")
    assert len(groups) == 6
    for group in groups:
        for row in group["rows"]:
            assert row["source"]
            assert all(0 < value < 1 for value in row["metrics"].values())
    rows = {row["row"]: row["metrics"] for row in published("beauty")["rows"]}
    assert rows["SASRec"]["beauty/hr@10"] == 0.0605
    assert rows["S3-Rec"]["beauty/ndcg@10"] == 0.0327
    assert rows["SASRec of RecBole"] == {"beauty/hr@10": 0.083, "beauty/ndcg@10": 0.0416}
    rows = {row["row"]: row["metrics"] for row in published("toys", "test-99-uniform")["rows"]}
    assert rows["S3-Rec, run again"]["toys/mrr"] == 0.3268


def test_committed_tables_can_be_made():
    tables = tables_of(BENCHMARK)
    assert {f"sequential-{name}{ending}" for name in LOGS for ending in ("", "-99")} <= set(tables)
    beauty = tables["sequential-beauty"]
    first = dict(zip(beauty.header, beauty.cells[0]))
    assert [first[column] for column in ("model", "HR@5", "NDCG@5")] == ["PopRec (published)", "0.0080", "0.0044"]
