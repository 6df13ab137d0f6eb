"""Run a stage: start from earlier stages, train or go on training, write weights and metrics."""

from __future__ import annotations

import csv
import inspect
import logging
import math
import os
import shutil
import signal
import sys
import threading
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from joblib import cpu_count
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from catalign import registry
from catalign.artifacts import MANIFEST, atomic, checksum, digest, is_sealed, read_json, seal, unseal, write_json
from catalign.config import Config, TrainerConfig
from catalign.encoders.base import Encoder
from catalign.errors import CatalignError
from catalign.training.features import pooled_features
from catalign.training.model import WEIGHTS, Model, build_model, modalities_of
from catalign.training.module import StageModule
from catalign.training.run import Run

logger = logging.getLogger(__name__)
CHECKPOINT = "last.ckpt"
WITHOUT_EFFECT = {"log_every", "checkpoint_minutes", "evaluations", "eval_batches"}
"""Trainer settings that leave the weights as they are."""


class StepCheckpoint(ModelCheckpoint):
    """Saves after whole optimiser steps only: gradients accumulated half-way are not part of a checkpoint."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class StopAtStep(Callback):
    """Ctrl-C ends training after the step in hand, with a checkpoint; a second one ends it at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked = path, False

    def __call__(self, *signal_and_frame: Any) -> None:
        """Handle SIGINT."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if that was asked for and no gradients are half accumulated."""
        if self.asked and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(str(self.path))
            raise KeyboardInterrupt


class HistoryWriter(Callback):
    """Keeps ``metrics.json`` (for the report) and ``metrics.csv`` (for anything else) up to date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is known so far."""
        history = cast(StageModule, pl_module).history
        if trainer.is_global_zero and history:
            write_json(self.folder / "metrics.json", history)
            with atomic(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["step", "seconds", "name", "value"])
                for entry in history:
                    rows.writerows([entry["step"], entry["seconds"], *pair] for pair in entry["values"].items())


def stage_inputs(run: Run, name: str) -> str:
    """Digest of everything a stage's weights depend on: settings, code, data, seed and the stages it starts from."""
    config, catalogue = run.config, run.catalogue()
    stage = config.stages[name]
    code = {inspect.getfile(registry.get("objective", c.name)) for c in stage.objectives.values()}
    return digest(
        {
            "stage": stage.model_dump(),
            "objectives": sorted(checksum(path) for path in code),
            "trainer": config.trainer_of(name).model_dump(exclude=WITHOUT_EFFECT),
            "encoder": {key: config.encoder[key].model_dump() for key in modalities_of(config, name)},
            "data": [catalogue.fingerprint, catalogue.fields],
            "seed": config.seed,
            "parents": [stage_inputs(run, parent) for parent in parents_of(config, name)],
        }
    )


def parents_of(config: Config, name: str) -> list[str]:
    """The earlier stages that this one starts from: by default those that trained one of its encoders."""
    if (chosen := config.stages[name].init) is not None:
        return chosen
    own = set(modalities_of(config, name))
    earlier = list(config.stages)[: list(config.stages).index(name)]
    return [stage for stage in earlier if own & set(modalities_of(config, stage))]


def run_stage(run: Run, name: str, *, progress: bool = True, callbacks: list[Callback] | None = None) -> Path:
    """Train a stage to its end, or go on from its checkpoint, or do nothing if its inputs are unchanged.

    A stage with other inputs is moved aside, never overwritten, and comes back when its inputs do.

    Args:
        run: The run.
        name: The stage.
        progress: Show progress bars.
        callbacks: More Lightning callbacks.

    Raises:
        CatalignError: The config does not fit the data, or an earlier stage is missing.
    """
    folder, inputs = run.stage_path(name), stage_inputs(run, name)
    _make_way(folder, inputs)
    _reuse(run, name, folder, inputs)
    if not is_sealed(folder):
        write_json(folder / "inputs.json", inputs)
        module = _fit(run, name, folder, progress, callbacks or [])
        module.model.save(folder / WEIGHTS)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        encoders = module.model.encoders.items()
        parameters = {key: sum(p.numel() for p in encoder.parameters()) for key, encoder in encoders}
        seal(folder, stage=name, inputs=inputs, parameters=parameters, seconds=module.history[-1]["seconds"])
    manifest = read_json(folder / MANIFEST)
    run.note(stages={name: {key: manifest[key] for key in ("seconds", "parameters")}})
    return folder


def _make_way(folder: Path, inputs: str) -> None:
    """Move a stage of other inputs aside, and bring back one that was moved aside before."""
    if not (folder / "inputs.json").is_file():
        return
    before = read_json(folder / "inputs.json")
    if before == inputs:
        return
    aside, again = (folder.with_name(f"{folder.name}.{made_from}") for made_from in (before, inputs))
    shutil.rmtree(aside, ignore_errors=True)  # an unfinished attempt of the same inputs
    folder.rename(aside)
    if again.is_dir():
        again.rename(folder)
    logger.warning("stage %s: its inputs changed; the former one is kept as %s", folder.name, aside.name)


def _reuse(run: Run, name: str, folder: Path, inputs: str) -> None:
    """Copy the stage from another run that finished it from the same inputs, if the config names one."""
    for other in run.config.reuse:
        finished = Path(other).expanduser() / folder.relative_to(run.path)
        if not is_sealed(folder) and is_sealed(finished) and read_json(finished / "inputs.json") == inputs:
            unseal(finished, f"stage {name!r} of {other}", "delete it, or leave reuse empty")
            shutil.rmtree(folder, ignore_errors=True)
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.copytree(finished, partial, dirs_exist_ok=True)
            partial.rename(folder)
            logger.warning("stage %s: copied from %s, which made it from the same", name, other)


def _fit(run: Run, name: str, folder: Path, progress: bool, callbacks: list[Callback]) -> StageModule:
    catalogue, settings = run.catalogue(), run.config.trainer_of(name)
    model = build_model(run.config, name, catalogue)
    _start_from_parents(run, name, model)
    features = _lock(run, name, model, settings)
    module = StageModule(model, settings, catalogue, _loaders(run, name, model, settings, features), run.config.seed)
    stop = StopAtStep(folder / CHECKPOINT)
    starts_ranks = "LOCAL_RANK" not in os.environ  # else torchrun did, or this process is one of them
    trainer = _trainer(folder, settings, module, progress, [*callbacks, stop])
    last, steps = folder / CHECKPOINT, module.loaders["train"]["steps"]
    handler = signal.getsignal(signal.SIGINT)
    in_charge = threading.current_thread() is threading.main_thread()  # only it may handle signals
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*|.*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*|.*exists and is not empty.*|.*GPU available but not used.*")
        warnings.filterwarnings("ignore", r".*module\(s\) in eval mode.*")
        try:
            if not last.is_file():
                trainer.validate(module, verbose=False)  # the row before step 0: what the stage starts from
            if in_charge:
                signal.signal(signal.SIGINT, stop)
            trainer.fit(module, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
            if module.history[-1]["step"] < steps:  # only a validation is recorded at the last step itself
                trainer.validate(module, verbose=False)
            if trainer.global_rank > 0:
                sys.exit(0)  # the other ranks were started for this stage; the first one goes on alone
        except SystemExit as error:
            if error.code == 1:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from None
            raise
        finally:
            if in_charge:
                signal.signal(signal.SIGINT, handler)  # Lightning leaves it disabled
            if starts_ranks:
                _end_ranks()
    return module


def _end_ranks() -> None:
    """Forget the ranks that Lightning started for a stage, so that the next stage starts its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def _start_from_parents(run: Run, name: str, model: Model) -> None:
    """Copy weights from earlier stages: encoders, and objectives of the same name and kind (a stage that goes on).

    Of two stages that trained the same encoder the later one counts.
    """
    for parent in parents_of(run.config, name):
        folder = run.stage_path(parent)
        unseal(folder, f"stage {parent!r}", f"stage {name!r} starts from it: run it first")
        source = build_model(run.config, parent, run.catalogue())
        source.load(folder / WEIGHTS)
        for modality, encoder in source.encoders.items():
            if modality in model.encoders:
                model.encoders[modality].load_state_dict(encoder.state_dict())
        for key, objective in source.objectives.items():
            if key in model.objectives and type(model.objectives[key]) is type(objective):
                model.objectives[key].load_state_dict(objective.state_dict())


def _lock(run: Run, name: str, model: Model, settings: TrainerConfig) -> dict[str, torch.Tensor]:
    """Freeze locked encoders and compute what they say of every product once (Zhai et al. 2022, LiT)."""
    features = {}
    for modality in run.config.stages[name].locked:
        model.encoders[modality].requires_grad_(False)
        fields = fields_of(run, name) or run.catalogue().fields
        if modality == "text" and run.config.stages[name].second_text:
            raise CatalignError(
                f"stages.{name} locks the text encoder, so each product has one cached text vector and no second text",
                f"set stages.{name}.second_text=null",
            )
        if modality == "text" and sum(weight > 0 for weight in fields.values()) != 1:
            raise CatalignError(
                f"stages.{name} locks the text encoder, so each product has one cached text vector, but samples "
                f"several text columns ({', '.join(fields)})",
                f"choose one: stages.{name}.text={{{next(iter(fields))}: 1}}",
            )
        field = next((f for f, weight in fields.items() if weight > 0), None)
        gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        encoder = cast(Encoder, model.encoders[modality]).to("cuda" if gpu else "cpu")
        parts = pooled_features(encoder, run.catalogue(), modality, settings.batch_size, field=field)
        features[modality] = torch.cat(list(parts))
        encoder.cpu()
    return features


def fields_of(run: Run, name: str, key: Literal["text", "second_text"] = "text") -> dict[str, float] | None:
    """The stage's own sampling weights of text columns, without those that the fallback of a public catalogue lacks."""
    chosen, data = getattr(run.config.stages[name], key), run.config.data
    if chosen is None or data.fallback_columns is None:
        return chosen
    there = run.catalogue().fields
    return {field: w for field, w in chosen.items() if field in there or field not in data.columns.text} or None


def _loaders(
    run: Run, name: str, model: Model, settings: TrainerConfig, features: dict[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    catalogue, stage = run.catalogue(), run.config.stages[name]
    rows, held_out = catalogue.rows(*stage.split, share=stage.share), catalogue.rows("val")
    if len(rows) < settings.batch_size:
        raise CatalignError(
            f"stages.{name}: {len(rows)} training products do not fill one batch of {settings.batch_size}",
            f"set stages.{name}.trainer.batch_size={max(2, len(rows) // 2)} or less",
        )
    per_step = settings.batch_size * settings.accumulate * settings.devices
    steps = settings.max_steps or math.ceil(settings.epochs * len(rows) / per_step)
    size = max(1, min(settings.batch_size, len(held_out) // settings.devices))
    common = {
        "modalities": tuple(model.encoders),
        "fields": fields_of(run, name),
        "second_fields": fields_of(run, name, "second_text"),
        "features": features or None,
    }
    return {
        "train": {"rows": rows, "batch_size": settings.batch_size, "steps": steps * settings.accumulate, **common},
        "val": {
            "rows": held_out,
            "batch_size": size,
            "steps": max(1, min(settings.eval_batches, len(held_out) // (size * settings.devices))),
            "shuffle": False,
            **common,
        },
    }


def _trainer(
    folder: Path, settings: TrainerConfig, module: StageModule, progress: bool, callbacks: list[Callback]
) -> pl.Trainer:
    for encoder in module.model.encoders.values():
        if settings.channels_last:
            encoder.to(memory_format=torch.channels_last)
        if settings.compile:
            encoder.compile()
    checkpoints = StepCheckpoint(
        dirpath=folder,
        filename=Path(CHECKPOINT).stem,
        train_time_interval=timedelta(minutes=settings.checkpoint_minutes),
        enable_version_counter=False,
    )
    own: list[Callback] = [checkpoints, HistoryWriter(folder)]
    if settings.devices > 1 and settings.accelerator == "cpu":
        torch.set_num_threads(max(1, cpu_count() // settings.devices))  # ranks share the cores
    if settings.ema is not None:
        own.append(EMAWeightAveraging(decay=settings.ema))
    if progress:
        own.append(RichProgressBar(leave=True))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    return pl.Trainer(
        max_epochs=1,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=max(1, module.loaders["train"]["steps"] // settings.evaluations),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=settings.log_every,
        enable_progress_bar=progress,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder, name="logs", version=""),
        callbacks=[*own, *callbacks],
    )
