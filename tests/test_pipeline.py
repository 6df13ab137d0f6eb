import json

import numpy as np
import pytest

from catalign import pipeline
from catalign.embeddings.store import EmbeddingStore
from catalign.retrieval.index import Index


def test_a_finished_run_holds_everything(tiny_run):
    assert list(tiny_run.stages) == ["text", "image", "align"]
    for part in ("config.json", "run.json", "report.html", "embeddings/manifest.json", "untrained/manifest.json"):
        assert (tiny_run.path / part).is_file(), part
    results = sorted(path.parent.name for path in (tiny_run.path / "results").glob("*/*.json"))
    assert set(results) == {"pretext", "probe", "retrieval"}
    record = json.loads((tiny_run.path / "run.json").read_text())
    assert set(record["stages"]) == {"text", "image", "align"}


def test_every_result_has_its_protocol_seed_versions_and_baselines(tiny_run):
    for path in (tiny_run.path / "results").glob("*/*.json"):
        result = json.loads(path.read_text())
        assert result["protocol"]["id"]
        assert result["seeds"] == [0]
        assert result["metrics"]
        assert result["baselines"], path
        assert {"hardware", "versions", "wall_clock_s", "git", "config"} <= result.keys()


def test_running_again_changes_nothing(tiny_run):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.path.glob("**/*.safetensors")}
    before |= {path: path.stat().st_mtime_ns for path in tiny_run.path.glob("**/*.npy")}
    pipeline.train(tiny_run)
    pipeline.embed(tiny_run)
    pipeline.build_index(tiny_run)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_embeddings_line_up_with_the_catalogue(tiny_run):
    store, catalogue = EmbeddingStore.open(tiny_run.path / "embeddings"), tiny_run.catalogue()
    assert store.ids == catalogue.ids
    assert store["text"].shape == store["image"].shape
    assert np.allclose(np.linalg.norm(store["image"][:][store.present("image")], axis=1), 1, atol=1e-4)
    assert len(Index.load(tiny_run.path / "index")) == len(catalogue)


def test_training_changed_the_embeddings(tiny_run):
    trained = EmbeddingStore.open(tiny_run.path / "embeddings")["text"][:]
    untrained = EmbeddingStore.open(tiny_run.path / "untrained")["text"][:]
    assert trained.shape == untrained.shape
    assert not np.allclose(trained, untrained, atol=1e-2)


def test_a_protocol_without_its_data_is_skipped_with_a_sentence(tiny_run, capsys):
    assert pipeline.evaluate(tiny_run, ["kagl"]) == []
    assert "skipped" in capsys.readouterr().err


def test_every_objective_lowers_its_loss_when_trained_a_little(tiny_config, tmp_path):
    config = tiny_config(
        tmp_path / "run",
        "stages.text.trainer={max_steps: 60, lr: 2e-3}",
        "stages.image.trainer={max_steps: 30, lr: 2e-3}",
        "stages.align.trainer={max_steps: 40, lr: 2e-3}",
    )
    run = pipeline.start(config)
    pipeline.train(run)
    for stage, folder in run.stages.items():
        history = json.loads((folder / "metrics.json").read_text())
        held_out = [entry["values"] for entry in history if any(key.startswith("val/") for key in entry["values"])]
        for objective in config.stages[stage].objectives:
            first, last = held_out[0][f"val/{objective}/loss"], held_out[-1][f"val/{objective}/loss"]
            if objective != "nsp":  # needs more than a few dozen steps to leave chance
                assert last < first, (stage, objective, first, last)


@pytest.mark.parametrize("experiment", ["quickstart", "fashion"])
def test_pretraining_stages_are_those_of_one_modality(experiment):
    from catalign.config import compose

    assert pipeline.single_modality_stages(compose([f"experiment={experiment}"])) == ["text", "image"]
