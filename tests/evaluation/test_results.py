from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from catalign import registry
from catalign.config import compose, config_folder
from catalign.errors import CatalignError
from catalign.evaluation.base import (
    Result,
    Skipped,
    data_of,
    evaluate,
    load_results,
    merge,
    protocol,
    save_results,
)
from catalign.provenance import describe_hardware, describe_versions, portable


def result(seed: int = 0, value: float = 0.5, k: int = 10, row: str = "ours", **given) -> Result:
    record = protocol("toy", "test", k=k)
    baselines = {"random": {"a/recall@10": 0.1}}
    return Result("toy", row, record, {"a/recall@10": value}, baselines, seeds=[seed], **given)


def test_protocol_id_stands_for_every_choice():
    first = protocol("toy", "test", k=10, ties="row")
    assert first["id"] == protocol("toy", "test", ties="row", k=10)["id"]
    assert first["id"].startswith("toy-test-")
    others = [
        protocol("toy", "test", k=5, ties="row"),
        protocol("toy", "val", k=10, ties="row"),
        protocol("toy", "test", k=10),
    ]
    assert len({first["id"], *(other["id"] for other in others)}) == 4
    assert {"name", "k", "ties"} <= set(first)


def test_merge_gives_mean_sample_deviation_and_values():
    merged = merge([result(2, 0.3), result(0, 0.1), result(1, 0.5)])
    assert merged.seeds == [0, 1, 2]
    form = merged.to_json()
    assert form["metrics"]["a/recall@10"] == {"mean": 0.3, "std": 0.2, "values": [0.1, 0.5, 0.3]}
    assert form["baselines"]["random"]["a/recall@10"]["values"] == [0.1, 0.1, 0.1]
    assert merged.mean("a/recall@10") == pytest.approx(0.3)


def test_intervals_merge_and_come_back_as_metrics_do(tmp_path):
    seeds = [result(seed, significance={"ours": {"a/low": seed / 10}, "random": {"a/low": 0.1}}) for seed in (0, 1)]
    seeds[1].significance.pop("random")
    (path,) = save_results([merge(seeds)], tmp_path)
    assert json.loads(path.read_text())["significance"]["ours"]["a/low"]["values"] == [0.0, 0.1]
    assert Result.load(path).significance == {"ours": {"a/low": [0.0, 0.1]}}


def test_one_seed_has_no_spread():
    assert result().to_json()["metrics"]["a/recall@10"] == {"mean": 0.5, "std": 0.0, "values": [0.5]}


def test_merge_of_merged_results_keeps_every_seed_and_names_each_machine_once():
    there = [result(seed, hardware={"cpu": "Elsewhere", "cores": 2}) for seed in (1, 2)]
    here = result(0, hardware={"cpu": "Here", "cores": 2})
    merged = merge([merge([here, there[0]]), there[1]])
    assert merged.seeds == [0, 1, 2]
    assert merged.hardware == {"cpu": "Here, Elsewhere", "cores": 2}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (result(1, k=5), "different protocols"),
        (result(0), "seed occurs twice"),
        (result(1, row="theirs"), "different rows"),
        (result(1, config={"seed": 1, "name": "other"}), "differ in more than the seed: name"),
        (result(1, config={"seed": 1, "name": "row", "data": {"root": None}}), "seed: name, data.root"),
    ],
)
def test_merge_refuses_what_does_not_belong_together(other, says):
    with pytest.raises(CatalignError, match=says):
        merge([result(0), other])


def test_refusal_names_the_choice_that_differs():
    with pytest.raises(CatalignError, match="they differ in: k"):
        merge([result(0), result(1, k=5)])


def test_a_notebook_shows_ours_and_the_baselines():
    html = result(1, 0.25, row="<mine>")._repr_html_()
    assert "&lt;mine&gt;" in html
    assert re.findall(r"<t[hd]>(.+)</t[hd]>", html) == ["ours", "random", "a/recall@10", "0.25", "0.1"]


def test_seeds_measured_beside_other_protocols_merge():
    beside = result(1, config={"seed": 1, "name": "row", "evaluation": {"kagl": {"name": "kagl"}}})
    assert merge([result(0, config={"seed": 0, "name": "row", "evaluation": {}}), beside]).seeds == [0, 1]


def test_seeds_of_one_config_merge():
    assert len(merge([result(s, config={"seed": s, "name": "a"}) for s in (1, 2)]).seeds) == 2


def test_file_form_round_trip(tmp_path):
    original = result(3, 1 / 3, details={"queries": 7}, git="abc")
    (path,) = save_results([original], tmp_path)
    assert path.name == "ours.json"
    form = json.loads(path.read_text())
    expected = "benchmark row protocol seeds metrics baselines hardware versions wall_clock_s git config"
    assert set(expected.split()) <= set(form)
    (loaded,) = load_results(tmp_path)
    assert loaded.to_json() == original.to_json()


def test_a_file_that_is_no_result(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"metrics": {}}')
    with pytest.raises(CatalignError, match="not a result file"):
        Result.load(path)


def test_empty_result_is_an_error():
    with pytest.raises(CatalignError, match="no metric was computed"):
        Result("toy", "ours", protocol("toy"), {})


def test_evaluate_stamps_what_a_number_depends_on(catalogue, context, monkeypatch, words):
    found = context(catalogue(["a", "b"], groups=[0, 1]), {"image": np.eye(2), "text": np.eye(2)}, name="ours", seed=4)
    (stamped,) = evaluate(found, "retrieval", directions=["text-to-image"])
    assert stamped.seeds == [4]
    assert stamped.row == "ours"
    assert stamped.hardware["cores"] >= 1
    assert stamped.hardware["cpu"]
    assert {"python", "torch", "timm", "transformers", "faiss"} <= set(stamped.versions)
    assert stamped.wall_clock_s >= 0
    assert stamped.details["seconds"]["evaluate"] >= 0


def test_hardware_and_versions_are_json():
    json.dumps([describe_hardware(), describe_versions()])


def test_unknown_protocol_names_the_nearest(catalogue, context):
    found = context(catalogue(["a", "b"]), {"image": np.eye(2), "text": np.eye(2)})
    with pytest.raises(CatalignError, match="did you mean 'retrieval'"):
        evaluate(found, "retreival")


def test_skipped_is_a_catalign_error():
    assert issubclass(Skipped, CatalignError)


def test_data_name_ignores_preparation_but_not_the_data(catalogue):
    first, same, other = (
        catalogue(["a", "b"]),
        catalogue(["a", "b"], fingerprint="x"),
        catalogue(["a", "b"], groups=[0, 0]),
    )
    assert data_of(first) == data_of(same) != data_of(other)


def test_config_in_a_result_has_no_folder_of_this_machine():
    folders = ["data.root=/somewhere/private", "output=/somewhere/else", "reuse=[/somewhere/runs/a]"]
    config = compose(["experiment=fashion", *folders])
    values = portable(config)
    assert "/somewhere" not in json.dumps(values)
    assert values["name"] == "fashion"
    assert values["data"]["root"] is None


def test_seeds_that_may_copy_stages_of_other_runs_have_one_config():
    first, second = (portable(compose(["experiment=icecat", f"seed={seed}"])) for seed in (0, 1))
    assert first == {**second, "seed": 0}


def test_experiments_choose_protocols_by_name():
    config = compose(["experiment=fashion"])
    assert {"retrieval", "kagl", "probe", "pretext"} <= set(config.evaluation)
    assert config.evaluation["retrieval"].options["split"] == "test"


@pytest.mark.parametrize("name", registry.names("protocol"))
def test_every_protocol_has_a_config_with_its_options(name):
    from omegaconf import OmegaConf

    path = config_folder() / "evaluation" / f"{name}.yaml"
    assert path.read_text().startswith(f"# @package evaluation.{name}\n")
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert values.pop("name") == name
    registry.validate("protocol", name, values, f"evaluation.{name}")
    given = registry.options("protocol", name)
    assert {key: given[key].default for key in values} == values


@pytest.mark.parametrize("name", registry.names("protocol"))
def test_a_protocol_docstring_is_its_specification(name):
    text = registry.get("protocol", name).__doc__
    for part in ("Data:", "Metrics, keyed", "Baselines"):
        assert part in text
    for option in registry.options("protocol", name):
        assert f"{option}:" in text


def test_no_run_is_needed(catalogue, context):
    found = context(catalogue(["a", "b"]), {"image": np.eye(2), "text": np.eye(2)})
    assert found.config is None
    assert found.parameters() is None
    assert found.untrained_queries() is None


def test_parameters_are_those_of_the_last_finished_stage(catalogue, context):
    record = {"stages": {"text": {"parameters": {"text": 5}}, "align": {"parameters": {"text": 5, "image": 7}}}}
    run = SimpleNamespace(
        config=SimpleNamespace(name="x"), stages={"text": Path(), "align": Path()}, record=lambda: record
    )
    found = context(catalogue(["a", "b"]), {"image": np.eye(2), "text": np.eye(2)}, run=run)
    assert found.parameters() == 12
    assert found.name == "x"
