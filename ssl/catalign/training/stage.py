"""Run a stage: start from earlier stages, train or go on training, write weights and metrics."""

from __future__ import annotations

import logging
import math
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from catalign.artifacts import digest, is_sealed, read_json, seal, unseal, write_json
from catalign.config import Config, TrainerConfig
from catalign.encoders.base import Encoder
from catalign.errors import CatalignError
from catalign.training.features import pooled_features
from catalign.training.model import WEIGHTS, Model, build_model, modalities_of
from catalign.training.module import StageModule
from catalign.training.run import Run

logger = logging.getLogger(__name__)
CHECKPOINT = "last.ckpt"


def stage_inputs(run: Run, name: str) -> str:
    """Digest of everything a stage's weights depend on: settings, data, seed and the stages it starts from."""
    config = run.config
    stage = config.stages[name]
    return digest(
        {
            "stage": stage.model_dump(),
            "trainer": config.trainer_of(name).model_dump(exclude={"log_every", "checkpoint_minutes"}),
            "encoder": {key: component.model_dump() for key, component in config.encoder.items()},
            "data": run.catalogue().fingerprint,
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

    A finished stage with other inputs is moved aside, never overwritten.

    Args:
        run: The run.
        name: The stage.
        progress: Show progress bars.
        callbacks: More Lightning callbacks.

    Raises:
        CatalignError: The config does not fit the data, or an earlier stage is missing.
    """
    inputs, folder = stage_inputs(run, name), run.stage_path(name)
    if (folder / "inputs.json").is_file():
        before = read_json(folder / "inputs.json")
        if before == inputs and is_sealed(folder):
            logger.info("stage %s: unchanged, skipped", name)
            return folder
        if before != inputs:
            folder.rename(folder.with_name(f"{name}.{before}"))
            logger.info("stage %s: its inputs changed; the former result is kept as %s.%s", name, name, before)
    write_json(folder / "inputs.json", inputs)

    catalogue, settings = run.catalogue(), run.config.trainer_of(name)
    model = build_model(run.config, name, catalogue)
    _start_from_parents(run, name, model)
    features = _lock(run, name, model, settings)
    module = StageModule(model, settings, catalogue, _loaders(run, name, model, settings, features), run.config.seed)
    trainer = _trainer(folder, settings, module, progress, callbacks or [])
    last = folder / CHECKPOINT
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*|.*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*|.*exists and is not empty.*|.*GPU available but not used.*")
        if not last.is_file():
            trainer.validate(module, verbose=False)  # the row before step 0: what the stage starts from
        trainer.fit(module, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if trainer.interrupted or trainer.fit_loop.epoch_loop.total_batch_idx + 1 < module.loaders["train"]["steps"]:
        raise CatalignError(f"stage {name!r} was stopped before its end", "run the same command again to go on")
    model.save(folder / WEIGHTS)
    write_json(folder / "metrics.json", module.history)
    last.unlink(missing_ok=True)
    parameters = {key: sum(p.numel() for p in encoder.parameters()) for key, encoder in model.encoders.items()}
    seal(folder, stage=name, inputs=inputs, parameters=parameters)
    run.note(stages={name: {"seconds": round(module.history[-1]["seconds"], 1), "parameters": parameters}})
    return folder


def _start_from_parents(run: Run, name: str, model: Model) -> None:
    """Copy encoder weights from earlier stages; of two that trained the same encoder, the later one counts."""
    for parent in parents_of(run.config, name):
        folder = run.stage_path(parent)
        unseal(folder, f"stage {parent!r}", f"stage {name!r} starts from it: run it first")
        source = build_model(run.config, parent, run.catalogue())
        source.load(folder / WEIGHTS)
        for modality, encoder in source.encoders.items():
            if modality in model.encoders:
                model.encoders[modality].load_state_dict(encoder.state_dict())


def _lock(run: Run, name: str, model: Model, settings: TrainerConfig) -> dict[str, torch.Tensor]:
    """Freeze locked encoders and compute what they say of every product once (Zhai et al. 2022, LiT)."""
    features = {}
    for modality in run.config.stages[name].locked:
        model.encoders[modality].requires_grad_(False)
        fields = run.config.stages[name].text or run.catalogue().fields
        if modality == "text" and sum(weight > 0 for weight in fields.values()) != 1:
            raise CatalignError(
                f"stages.{name} locks the text encoder, so each product has one cached text vector, but samples "
                f"several text columns ({', '.join(fields)})",
                f"choose one: stages.{name}.text={{{next(iter(fields))}: 1}}",
            )
        field = next((f for f, weight in fields.items() if weight > 0), None)
        encoder = cast(Encoder, model.encoders[modality])
        parts = pooled_features(encoder, run.catalogue(), modality, settings.batch_size, field=field)
        features[modality] = torch.cat(list(parts))
    return features


def _loaders(
    run: Run, name: str, model: Model, settings: TrainerConfig, features: dict[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    catalogue, stage = run.catalogue(), run.config.stages[name]
    rows, held_out = catalogue.rows(*stage.split), catalogue.rows("val")
    if len(rows) < settings.batch_size:
        raise CatalignError(
            f"stages.{name}: {len(rows)} training products do not fill one batch of {settings.batch_size}",
            f"set stages.{name}.trainer.batch_size={max(2, len(rows) // 2)} or less",
        )
    per_step = settings.batch_size * settings.accumulate * settings.devices
    steps = settings.max_steps or math.ceil(settings.epochs * len(rows) / per_step)
    size = min(settings.batch_size, len(held_out))
    common = {"modalities": tuple(model.encoders), "fields": stage.text, "features": features or None}
    return {
        "train": {"rows": rows, "batch_size": settings.batch_size, "steps": steps * settings.accumulate, **common},
        "val": {
            "rows": held_out,
            "batch_size": size,
            "steps": max(1, min(settings.eval_batches, len(held_out) // size)),
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
    checkpoints = ModelCheckpoint(
        dirpath=folder,
        filename=Path(CHECKPOINT).stem,
        train_time_interval=timedelta(minutes=settings.checkpoint_minutes),
        enable_version_counter=False,
    )
    own: list[Callback] = [checkpoints]
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
        logger=[CSVLogger(folder, name="logs", version="csv"), TensorBoardLogger(folder, name="logs", version="tb")],
        callbacks=[*own, *callbacks],
    )
