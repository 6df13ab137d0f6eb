import json
import linecache
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file

from catalign import registry
from catalign.artifacts import alone
from catalign.embeddings.extract import Embedder
from catalign.errors import CatalignError
from catalign.objectives.base import Objective
from catalign.pipeline import start
from catalign.training.model import WEIGHTS, build_model
from catalign.training.run import Run
from catalign.training.stage import CHECKPOINT, _sources, _start_from_parents, run_stage, stage_inputs


class StopAfter(Callback):
    """Save and stop after a number of optimiser steps, as a killed session would leave things."""

    def __init__(self, steps, path):
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(str(self.path))
            raise KilledError


class KilledError(Exception):
    pass


def stop_then_resume(run, name, steps):
    with pytest.raises(KilledError):
        run_stage(run, name, progress=False, callbacks=[StopAfter(steps, run.stage_path(name) / CHECKPOINT)])
    return run_stage(run, name, progress=False)


@pytest.mark.parametrize(
    ("stage", "extra"),
    [
        ("text", []),
        ("image", []),
        ("text", ["stages.text.trainer={max_steps: 6, ema: 0.9}"]),
        ("text", ["stages.text.trainer={max_steps: 4, accumulate: 2}"]),
    ],
)
def test_a_stopped_stage_goes_on_bit_for_bit(tiny_config, tmp_path, stage, extra):
    whole = run_stage(start(tiny_config(tmp_path / "whole", *extra)), stage, progress=False)
    resumed = stop_then_resume(start(tiny_config(tmp_path / "resumed", *extra)), stage, steps=1)
    first, second = load_file(whole / WEIGHTS), load_file(resumed / WEIGHTS)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    curves = [
        [(h["step"], h["values"]) for h in json.loads((p / "metrics.json").read_text())] for p in (whole, resumed)
    ]
    assert curves[0] == curves[1]


def test_a_stage_is_copied_from_a_run_that_made_the_same(tiny_config, tmp_path):
    first = run_stage(start(tiny_config(tmp_path / "first")), "text", progress=False)
    reuse = f"reuse=[{tmp_path}/absent,{tmp_path}/first]"
    second = run_stage(start(tiny_config(tmp_path / "second", reuse)), "text", progress=False)
    assert (second / "manifest.json").read_text() == (first / "manifest.json").read_text()
    other = run_stage(start(tiny_config(tmp_path / "other", reuse, "seed=1")), "text", progress=False)
    assert (other / "manifest.json").read_text() != (first / "manifest.json").read_text(), "made of something else"


def test_another_seed_gives_other_weights(tiny_config, tmp_path):
    one = run_stage(start(tiny_config(tmp_path / "one")), "text", progress=False)
    two = run_stage(start(tiny_config(tmp_path / "two", "seed=1")), "text", progress=False)
    first, second = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_an_unchanged_stage_is_skipped_and_a_changed_one_moves_the_old_aside(tiny_config, tmp_path):
    run = start(tiny_config(tmp_path / "run"))
    folder = run_stage(run, "text", progress=False)
    stamp = (folder / WEIGHTS).stat().st_mtime_ns
    assert run_stage(run, "text", progress=False) == folder
    assert (folder / WEIGHTS).stat().st_mtime_ns == stamp
    changed = start(tiny_config(tmp_path / "run", "stages.text.trainer.lr=5e-4"))
    run_stage(changed, "text", progress=False)
    assert (folder / WEIGHTS).stat().st_mtime_ns != stamp
    kept = [path for path in folder.parent.iterdir() if path.name.startswith("text.")]
    assert [path / WEIGHTS for path in kept if (path / WEIGHTS).stat().st_mtime_ns == stamp]


def test_going_back_to_former_settings_brings_the_former_stage_back(tiny_config, tmp_path):
    stamps = []
    for lr in ("1e-3", "5e-4", "1e-3", "5e-4"):
        run = start(tiny_config(tmp_path / "run", f"stages.text.trainer.lr={lr}"))
        stamps.append((run_stage(run, "text", progress=False) / WEIGHTS).stat().st_mtime_ns)
    assert stamps[0] == stamps[2] != stamps[1] == stamps[3]


def test_an_attempt_that_failed_at_once_leaves_nothing_and_the_former_stage_comes_back(
    tiny_config, tmp_path, monkeypatch
):
    run = start(tiny_config(tmp_path / "run", "stages.text.trainer.lr=1e-3"))
    stamp = (run_stage(run, "text", progress=False) / WEIGHTS).stat().st_mtime_ns
    other = start(tiny_config(tmp_path / "run", "stages.text.trainer.lr=5e-4"))
    with monkeypatch.context() as broken:
        broken.setattr("catalign.training.stage._fit", Mock(side_effect=RuntimeError))
        with pytest.raises(RuntimeError):
            run_stage(other, "text", progress=False)
    assert (run_stage(run, "text", progress=False) / WEIGHTS).stat().st_mtime_ns == stamp
    assert [path.name for path in (run.path / "stages").iterdir()] == ["text"]


def test_a_stage_depends_on_the_code_that_its_objectives_share():
    code = "".join(_sources(registry.get("objective", "contrastive")))
    for part in ("class Contrastive", "class Views", "def infonce", "def random_run", "def run_objectives"):
        assert part in code
    assert "class NextSentence" not in code


def test_an_objective_of_a_notebook_depends_on_its_cell(monkeypatch):
    cell = "class InCell(Objective):\n    rate = 0.5\n\n    def forward(self, encode, batch):\n        return {}\n"
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(cell), None, cell.splitlines(keepends=True), "<cell 1>"))
    there = {"Objective": Objective, "__name__": "__main__"}
    exec(compile(cell, "<cell 1>", "exec"), there)
    assert cell in _sources(there["InCell"])


def test_a_checkpoint_never_falls_between_accumulated_batches(tiny_config, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda self, *args: saved.append(args[-1]))
    run = start(tiny_config(tmp_path / "run", "stages.text.trainer={max_steps: 3, accumulate: 2}"))
    run_stage(run, "text", progress=False)
    assert saved == [1, 3, 5]


class PressCtrlC(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_the_stage_goes_on_bit_for_bit(tiny_config, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run = start(tiny_config(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, "text", progress=False, callbacks=[PressCtrlC()])
    assert signal.getsignal(signal.SIGINT) == before
    assert (run.stage_path("text") / CHECKPOINT).is_file()
    resumed = load_file(run_stage(run, "text", progress=False) / WEIGHTS)
    whole = load_file(run_stage(start(tiny_config(tmp_path / "whole")), "text", progress=False) / WEIGHTS)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_two_processes_do_not_write_one_run(tiny_config, tmp_path):
    run = Run.create(tiny_config(tmp_path / "run"))
    with alone(run.path), pytest.raises(CatalignError, match="another process"):
        run_stage(run, "text", progress=False)
    assert not run.stage_path("text").exists()


def test_a_loss_that_is_not_finite_ends_in_a_sentence(tiny_config, tmp_path, monkeypatch):
    from catalign.objectives.mlm import MaskedLanguageModelling

    monkeypatch.setattr(
        MaskedLanguageModelling,
        "forward",
        lambda self, encode, batch: {"loss": encode("text").pooled.sum() * torch.nan},
    )
    with pytest.raises(CatalignError, match=r"not finite at step 0(.|\n)*trainer.lr"):
        run_stage(start(tiny_config(tmp_path / "run")), "text", progress=False)


def test_the_last_validation_is_at_the_last_step_and_logs_are_kept(tiny_run):
    for folder in tiny_run.stages.values():
        history = json.loads((folder / "metrics.json").read_text())
        held_out = [entry["step"] for entry in history if any(key.startswith("val/") for key in entry["values"])]
        assert held_out[0] == 0
        assert held_out[-1] == history[-1]["step"] == max(entry["step"] for entry in history)
        assert (folder / "metrics.csv").read_text().splitlines()[0] == "step,seconds,name,value"
        assert list((folder / "logs").glob("events*"))


def test_alignment_starts_from_the_pretrained_encoders(tiny_run):
    text = load_file(tiny_run.stages["text"] / WEIGHTS)
    untrained = build_model(tiny_run.config, "text", tiny_run.catalogue()).state_dict()
    name = next(n for n in text if n.startswith("encoders.text") and text[n].ndim == 2)
    assert not torch.equal(text[name], untrained[name])
    model = build_model(tiny_run.config, "align", tiny_run.catalogue())
    _start_from_parents(tiny_run, "align", model)
    assert torch.equal(model.state_dict()[name], text[name])


def test_a_stage_that_goes_on_starts_from_the_objective_too(tiny_config, tmp_path):
    align = "{name: contrastive, drop_tokens: 0.1}"
    more = ["stages.more={init: [align], second_text: {description: 1}, objectives: {contrastive: " + align + "}}"]
    few = [
        "stages.align.init=[]",
        "stages.align.trainer={max_steps: 2}",
        "stages.more.trainer={max_steps: 2, lr: 1e-12}",
    ]
    run = start(tiny_config(tmp_path / "run", *more, *few))
    for stage in ("align", "more"):
        folder = run_stage(run, stage, progress=False)
    before, after = (load_file(run.stage_path(stage) / WEIGHTS) for stage in ("align", "more"))
    heads = [name for name in after if name.startswith("objectives.")]
    assert heads
    for name in heads:
        torch.testing.assert_close(before[name], after[name], atol=1e-6, rtol=0)
    assert any("second_accuracy" in key for key in json.loads((folder / "metrics.json").read_text())[-1]["values"])


SMALL = "stages.image={encoder: {image: {size: [32, 32]}}, trainer: {max_steps: 1}}"


def test_a_stage_may_see_smaller_photos_than_the_next(tiny_config, tmp_path):
    run = start(tiny_config(tmp_path / "run", SMALL))
    sizes = [build_model(run.config, stage, run.catalogue()).encoders["image"].size for stage in ("image", "align")]
    assert sizes == [(32, 32), (64, 64)]
    assert stage_inputs(run, "image") != stage_inputs(start(tiny_config(tmp_path / "other")), "image")
    run_stage(run, "image", progress=False)
    model = build_model(run.config, "align", run.catalogue())
    with pytest.raises(CatalignError, match="stage 'text'"):
        _start_from_parents(run, "align", model)  # the text stage is missing; the image stage fits
    weights = load_file(run.stage_path("image") / WEIGHTS)
    _start_from_parents(start(tiny_config(tmp_path / "run", SMALL, "stages.align.init=[image]")), "align", model)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items() if k.startswith("encoders.image"))


def test_a_transformer_cannot_go_on_at_another_size(tiny_config, tmp_path):
    vit = ["encoder/image=vit_tiny", SMALL, "stages.align.init=[image]"]
    run = start(tiny_config(tmp_path / "run", *vit))
    run_stage(run, "image", progress=False)
    with pytest.raises(CatalignError, match=r"stages\.align cannot start from stages\.image"):
        run_stage(run, "align", progress=False)


def test_two_ranks_train_one_stage_after_the_other(tiny_config, tmp_path, cache):
    config = tiny_config(tmp_path / "run")
    start(config)  # the ranks find the catalogue prepared
    few = [f"stages.{stage}.trainer={{max_steps: 5, evaluations: 2, batch_size: 16}}" for stage in config.stages]
    ranks = ["trainer.devices=2", "trainer.accelerator=cpu"]
    places = [f"output={tmp_path}/run", f"data.cache={cache}"]
    command = [sys.executable, "-m", "catalign.cli", "align", *tiny_config.overrides, *places]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *few, *ranks], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for stage in config.stages:
        assert (tmp_path / "run" / "stages" / stage / WEIGHTS).is_file()


def test_a_locked_encoder_keeps_its_weights_while_the_other_learns(tiny_config, tmp_path):
    run = start(tiny_config(tmp_path / "run", "stages.align.locked=[image]", "stages.align.init=[]"))
    before = build_model(run.config, "align", run.catalogue()).state_dict()
    after = load_file(run_stage(run, "align", progress=False) / WEIGHTS)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("encoders.image")]
    assert [name for name in changed if name.startswith("encoders.text")]


def test_locking_text_with_two_columns_says_what_to_do(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", "stages.align.locked=[text]", "stages.align.text={title: 1, description: 1}")
    config = config.model_copy(update={"stages": {"align": config.stages["align"].model_copy(update={"init": []})}})
    with pytest.raises(CatalignError, match=r"stages.align.text=\{title: 1\}"):
        run_stage(start(config), "align", progress=False)


def test_locking_text_leaves_no_second_text(tiny_config, tmp_path):
    second = "stages.align.second_text={description: 1}"
    run = start(tiny_config(tmp_path, "stages.align.locked=[text]", "stages.align.init=[]", second))
    with pytest.raises(CatalignError, match="second_text=null"):
        run_stage(run, "align", progress=False)


def test_an_altered_checkpoint_is_refused_by_name(tiny_config, tmp_path):
    run = start(tiny_config(tmp_path / "run"))
    weights = run_stage(run, "text", progress=False) / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CatalignError, match=f"{WEIGHTS} was altered"):
        run.model("text")


def test_a_run_without_a_checkpoint_says_so(tiny_config, tmp_path):
    run = start(tiny_config(tmp_path / "run"))
    with pytest.raises(CatalignError, match="no finished stage"):
        run.model()


def test_items_are_described_by_the_stage_that_behaviour_starts_from(tiny_run):
    catalogue, encoder = tiny_run.catalogue(), tiny_run.model("behaviour").encoders["behaviour"]
    embedder = Embedder.from_run(tiny_run, tiny_run.model("align"))
    content = embedder.text(catalogue.text()[:]) + embedder.images(list(np.asarray(catalogue.images)))
    expected = torch.from_numpy((content - content.mean(0)) / content.std(0))
    torch.testing.assert_close(encoder.features, expected, rtol=1e-3, atol=1e-3)
    assert encoder.described.all()


def test_the_untrained_model_reads_content_of_untrained_encoders(tiny_run):
    untrained, trained = tiny_run.untrained().encoders["behaviour"], tiny_run.model().encoders["behaviour"]
    assert untrained.described.all(), "a model that knows no product would be no baseline"
    assert not torch.allclose(untrained.features, trained.features, atol=0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.behaviour.init=[]", r"stages\.behaviour: encoder\.behaviour\.items=content needs content"),
        ("encoder.behaviour.content_width=7", r"set encoder\.behaviour\.content_width="),
    ],
)
def test_before_any_training_content_is_known_to_come_and_to_fit(tiny_config, tmp_path, override, message):
    with pytest.raises(CatalignError, match=message):
        start(tiny_config(tmp_path / "run", override))


def test_behaviour_goes_on_bit_for_bit(tiny_config, tmp_path):
    alone = ["encoder.behaviour.items=ids", "stages.behaviour.init=[]"]
    whole = run_stage(start(tiny_config(tmp_path / "whole", *alone)), "behaviour", progress=False)
    resumed = stop_then_resume(start(tiny_config(tmp_path / "resumed", *alone)), "behaviour", steps=2)
    first, second = load_file(whole / WEIGHTS), load_file(resumed / WEIGHTS)
    assert all(torch.equal(first[name], second[name]) for name in first)
