"""The peer row: what is written for open_clip, and that its towers are the run's own."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from catalign.config import TrainerConfig
from catalign.data.catalogue import Texts
from catalign.data.text import train_wordpiece
from catalign.embeddings.extract import Embedder
from catalign.encoders import ImageEncoder, TextEncoder
from catalign.errors import CatalignError
from catalign.evaluation.base import Result
from catalign.objectives.views import Views
from catalign.training.run import Run


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("kagl/open_clip_peer.py")


@pytest.fixture(scope="module")
def vocabulary():
    return train_wordpiece(["red dress", "red shoe", "blue dress", "blue shoe"], 200, min_frequency=1)


def test_pairs_are_what_the_csv_loader_reads(script, tmp_path):
    pandas = pytest.importorskip("pandas")
    titles = ["red dress", 'so-called "shoe", 5"', "Über-Schuh, blue", "hat"]

    class Catalogue:
        def text(self):
            return Texts(pa.chunked_array([titles]))

    script.write_pairs(tmp_path / "train.tsv", Catalogue(), np.array([0, 1, 2]), Path("photos"))
    table = pandas.read_csv(tmp_path / "train.tsv", sep="\t")
    assert table["filepath"].tolist() == ["photos/0.png", "photos/1.png", "photos/2.png"]
    assert table["title"].tolist() == titles[:3]


def test_the_config_has_the_runs_towers(script, vocabulary):
    image = ImageEncoder(model="resnet10t", size=(64, 48), kwargs={"channels": [8, 8, 8, 8]})
    text = TextEncoder(vocabulary, layers=1, width=32, heads=2, pooling="cls")
    config = script.model_config(image, text, width=16, longest=9)
    assert config["model_cfg"]["embed_dim"] == 16
    assert config["model_cfg"]["vision_cfg"]["image_size"] == [64, 48]
    assert config["model_cfg"]["text_cfg"]["context_length"] == 11
    assert config["model_cfg"]["text_cfg"]["hf_pooler_type"] == "cls_last_hidden_state_pooler"
    assert config["preprocess_cfg"]["mean"] == [0.485, 0.456, 0.406]


def test_texts_get_the_special_tokens_of_our_batches(script, vocabulary):
    ids = script.tokenizer(vocabulary)(["Red shoe"], padding="max_length", max_length=6).input_ids[0]
    ours = [vocabulary.cls, *vocabulary.encode(["Red shoe"])[0], vocabulary.sep]
    assert ids == ours + [vocabulary.pad] * (6 - len(ours))


def test_options_are_the_stages(script):
    trainer = TrainerConfig(lr=2e-3, batch_size=64, precision="bf16", warmup=0.1, clip=None)
    options = script.optimisation(trainer, epochs=3, steps=50)
    assert options["warmup"] == 15
    assert (options["lr"], options["batch-size"], options["precision"]) == (2e-3, 64, "amp_bf16")
    assert "grad-clip-norm" not in options
    assert script.optimisation(TrainerConfig(clip=0.5), 1, 1)["grad-clip-norm"] == 0.5


def test_crops_have_the_aspect_of_the_input(script):
    views = Views(scale=(0.7, 1.0), ratio=(0.9, 1.1))
    assert script.crops(views, (64, 48)) == ["scale=(0.7,1.0)", "ratio=(0.675,0.825)", "use_timm=True"]


def test_lists_become_words(script):
    words = script.command({"lr": 0.1, "siglip": [], "aug-cfg": ["scale=(0.7,1.0)", "use_timm=True"]})
    assert words == ["-m", "open_clip_train.main", "--lr", "0.1", "--siglip", "--aug-cfg", *words[-2:]]
    assert words[-2:] == ["scale=(0.7,1.0)", "use_timm=True"]


def test_epochs_from_calibration(script):
    log = "\n".join(f"Train Epoch: 0 Data (t): 0.5 Batch (t): {t:.3f}, 53/s" for t in (9, 3, 3, 5, 2, 4))
    assert script.epoch_seconds(log, calibrated=3, steps=11) == 5 + 10 * 3  # the first epoch does not count
    with pytest.raises(CatalignError, match="6 steps, not 4"):
        script.epoch_seconds(log, calibrated=2, steps=11)
    assert script.epoch_seconds("Batch (t): 2.0, Batch (t): 1.5,", calibrated=1, steps=4) == 6
    assert script.epochs_within(3600, per_epoch=230) == 16
    assert script.epochs_within(10, per_epoch=230) == 1


def test_what_is_missing_is_said_before_training(script, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip_train", None)
    assert script.main([str(tiny_run.path)]) == 2
    assert ".[bench]" in capsys.readouterr().err
    installed = ModuleType("open_clip_train")
    installed.__spec__ = ModuleSpec("open_clip_train", None)
    monkeypatch.setitem(sys.modules, "open_clip_train", installed)
    assert script.main([str(tiny_run.path), "--qrels", str(tmp_path / "none"), "--work", str(tmp_path)]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_pretrained_encoders_are_no_start_from_scratch(script, tiny_run):
    text = tiny_run.config.encoder["text"].model_copy(update={"pretrained": "some/model"})
    config = tiny_run.config.model_copy(update={"encoder": {**tiny_run.config.encoder, "text": text}})
    with pytest.raises(CatalignError, match=r"encoder\.text .* pretrained"):
        script.contrastive_stage(Run(tiny_run.path, config))


@pytest.fixture
def open_clip_run(request):
    pytest.importorskip("open_clip_train.main")  # before the run, which takes a while
    return request.getfixturevalue("tiny_run")


def test_the_runs_weights_fit_and_give_the_runs_embeddings(script, open_clip_run, tmp_path):
    run = open_clip_run
    peer = script.Peer(run, tmp_path)
    script.write_towers(peer, tmp_path / "model")
    trained = run.model(peer.stage)
    objective = next(iter(trained.tasks().values()))
    weights = {f"visual.trunk.{name}": value for name, value in trained.encoders["image"].model.state_dict().items()}
    weights |= {f"text.transformer.{name}": v for name, v in trained.encoders["text"].model.state_dict().items()}
    weights |= {"visual.head.proj.weight": objective.heads["image"].weight.detach()}
    weights |= {"text.proj.weight": objective.heads["text"].weight.detach(), "logit_scale": torch.tensor(0.0)}
    torch.save({"state_dict": weights}, tmp_path / "ours.pt")

    embedder = script.OpenClip(tmp_path, tmp_path / "ours.pt")
    store = embedder.catalogue(run.catalogue(), tmp_path / "store")
    ours = Embedder.from_run(run, trained).catalogue(run.catalogue(), tmp_path / "ours", progress=False)
    rows = peer.rows  # whose titles fit into the peer's context
    np.testing.assert_allclose(store["text"][rows], ours["text"][rows], atol=1e-4)
    np.testing.assert_allclose(store["image"], ours["image"], atol=1e-4)
    assert embedder.parameters == sum(run.record()["stages"][peer.stage]["parameters"].values())


def test_from_a_run_to_a_row(script, open_clip_run, tmp_path):
    run = open_clip_run
    catalogue = run.catalogue()
    titles = catalogue.text()
    pairs = [("text-to-image", titles[int(row)], catalogue.ids[row]) for row in catalogue.rows("test")]
    columns = dict(zip(("task", "query", "id"), map(list, zip(*pairs))))
    pq.write_table(pa.table({**columns, "relevance": [1] * len(pairs)}), tmp_path / "qrels.parquet")
    options = ["--work", str(tmp_path), "--qrels", str(tmp_path / "qrels.parquet"), "--workers", "0"]

    assert script.main([str(run.path), *options, "--epochs", "1", "-o", str(tmp_path / "results")]) == 0
    result = Result.load(tmp_path / "results" / "open_clip.json")
    assert (result.row, result.protocol["name"]) == ("open_clip", "kagl-published")
    assert set(result.baselines) == {"random"}  # TF-IDF needs a task of words
    assert set(result.details["seconds"]) == {"prepare", "export", "train", "embeddings", "evaluate"}
    assert result.details["training"] == f"KAGL train split ({len(catalogue.rows('train'))} products)"
    assert result.config["arguments"]["epochs"] == 1
    assert str(tmp_path) not in str(result.config)
    assert "open_clip_torch" in result.versions
