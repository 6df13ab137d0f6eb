"""Run a stage: start from earlier stages, train or go on training, write weights and metrics."""

from __future__ import annotations

import inspect
import linecache
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import cast

import pytorch_lightning as pl
import torch
from joblib import cpu_count
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from catalign import plugins, registry
from catalign.artifacts import MANIFEST, alone, digest, is_sealed, read_json, seal, unseal, write_json
from catalign.config import TrainerConfig, cpu_precision
from catalign.data.store import EmbeddingStore
from catalign.encoders.base import Encoder
from catalign.errors import CatalignError
from catalign.objectives.base import Objective
from catalign.training.callbacks import HistoryWriter, StepCheckpoint, StopAtStep
from catalign.training.content import describe_items
from catalign.training.features import pooled_features
from catalign.training.loaders import fields_of, loaders_of
from catalign.training.model import WEIGHTS, Model, build_model, modalities_of, parents_of
from catalign.training.module import StageModule
from catalign.training.run import Run

logger = logging.getLogger(__name__)
CHECKPOINT = "last.ckpt"
WITHOUT_EFFECT = {"log_every", "checkpoint_minutes", "evaluations", "eval_batches"}
"""Trainer settings that leave the weights as they are."""


def stage_inputs(run: Run, name: str) -> str:
    """Digest of everything a stage's weights depend on: settings, code, data, seed and the stages it starts from."""
    config, catalogue = run.config, run.catalogue()
    stage = config.stages[name]
    encoders = {key: config.encoder_of(name, key) for key in modalities_of(config, name)}
    stores = [path for encoder in encoders.values() if (path := encoder.options.get("content"))]
    code = {text for c in stage.objectives.values() for text in _sources(registry.get("objective", c.name))}
    return digest(
        {
            "stage": stage.model_dump(),
            "objectives": sorted(code),
            "trainer": config.trainer_of(name).model_dump(exclude=WITHOUT_EFFECT),
            "encoder": {key: encoder.model_dump() for key, encoder in encoders.items()},
            "content": [EmbeddingStore.open(path, verify=False).digest for path in stores],
            "data": [catalogue.fingerprint, catalogue.fields],
            "seed": config.seed,
            "parents": [stage_inputs(run, parent) for parent in parents_of(config, name)],
        }
    )


def _sources(objective: type[Objective]) -> list[str]:
    """The code that an objective's losses come from: its module and, from there on, those it uses of ``objectives``.

    Of a plugin's objective all that it uses of the plugin counts too.
    """
    package = objective.__module__.partition(".")[0]
    counted = (f"{registry.PACKAGES['objective']}.", *([] if package == plugins.OURS else [f"{package}."]))
    seen, left = {objective.__module__}, [objective.__module__]
    while left:
        values = vars(sys.modules[left.pop()]).values()
        used = {value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) for value in values}
        left += (new := {name for name in used - seen if name and f"{name}.".startswith(counted)})
        seen |= new
    return [_main_source(objective) if name == "__main__" else _text(sys.modules[name]) for name in seen]


def _main_source(objective: type[Objective]) -> str:
    """The script, or the cell of a notebook, that defines an objective; a notebook has no file to read."""
    methods = [value for value in vars(objective).values() if inspect.isfunction(value)]
    return "".join(line for method in methods[:1] for line in inspect.findsource(method)[0])


def _text(module: ModuleType) -> str:
    """A module's code; an empty file, which ``inspect`` refuses, is one too."""
    return "".join(linecache.getlines(module.__file__ or ""))


def is_finished(run: Run, name: str) -> bool:
    """Whether a stage has come to its end from the inputs that it has now."""
    folder = run.stage_path(name)
    return is_sealed(folder) and read_json(folder / "inputs.json") == stage_inputs(run, name)


def run_stage(run: Run, name: str, *, progress: bool = True, callbacks: list[Callback] | None = None) -> Path:
    """Train a stage to its end, or go on from its checkpoint, or do nothing if its inputs are unchanged.

    A stage with other inputs is moved aside, never overwritten, and comes back when its inputs do.

    Args:
        run: The run.
        name: The stage.
        progress: Show progress bars.
        callbacks: More Lightning callbacks.

    Raises:
        CatalignError: The config does not fit the data, an earlier stage is missing, or another process writes the run.
    """
    folder, inputs = run.stage_path(name), stage_inputs(run, name)
    with alone(run.path):
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
    if any((folder / name).is_file() for name in (MANIFEST, CHECKPOINT, WEIGHTS)):
        shutil.rmtree(aside, ignore_errors=True)  # an unfinished attempt of the same inputs
        folder.rename(aside)
        logger.warning("stage %s: its inputs changed; the former one is kept as %s", folder.name, aside.name)
    else:
        shutil.rmtree(folder)  # it failed before there was anything to keep
    if again.is_dir():
        again.rename(folder)


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
    describe_items(name, model, _start_from_parents(run, name, model), catalogue, _device(settings))
    features = _lock(run, name, model, settings)
    loaders = loaders_of(run, name, model, settings, features)
    module = StageModule(model, settings, loaders, run.config.seed)
    stop = StopAtStep(folder / CHECKPOINT)
    starts_ranks = "LOCAL_RANK" not in os.environ  # else torchrun did, or this process is one of them
    threads = torch.get_num_threads()
    trainer = _trainer(folder, settings, module, progress, [*callbacks, stop])
    last, steps = folder / CHECKPOINT, module.loaders.steps
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
            torch.set_num_threads(threads)
            if starts_ranks:
                _end_ranks()
    return module


def _end_ranks() -> None:
    """Forget the ranks that Lightning started for a stage, so that the next stage starts its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def _start_from_parents(run: Run, name: str, model: Model) -> list[Model]:
    """Copy weights from earlier stages: encoders, and objectives of the same name and kind (a stage that goes on).

    Of two stages that trained the same encoder the later one counts.

    Returns:
        The models of the earlier stages, in their order.
    """
    parents = []
    for parent in parents_of(run.config, name):
        folder = run.stage_path(parent)
        unseal(folder, f"stage {parent!r}", f"stage {name!r} starts from it: run it first")
        source = build_model(run.config, parent, run.catalogue())
        source.load(folder / WEIGHTS)
        parents.append(source.eval())
        for kind in ("encoders", "objectives"):
            learned, new = getattr(source, kind), getattr(model, kind)
            for key in learned:
                if key in new and type(new[key]) is type(learned[key]):
                    try:
                        # An objective may go on with more or fewer modalities: the heads they share are copied.
                        new[key].load_state_dict(learned[key].state_dict(), strict=kind == "encoders")
                    except RuntimeError as error:
                        problem = f"stages.{name} cannot start from stages.{parent}: their {kind}.{key} differ in shape"
                        raise CatalignError(problem, str(error).splitlines()[-1].strip()) from None
    return parents


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
        encoder = cast(Encoder, model.encoders[modality]).to(_device(settings))
        parts = pooled_features(encoder, run.catalogue(), modality, settings.batch_size, field=field)
        features[modality] = torch.cat(list(parts))
        encoder.cpu()
    return features


def _device(settings: TrainerConfig) -> str:
    """Where this rank encodes a catalogue before the trainer gives it a device."""
    gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"


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
    if settings.precision == "bf16" and settings.accelerator == "cpu" and cpu_precision() != "bf16":
        logger.warning("this processor only emulates bf16, which is many times slower than trainer.precision=32")
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
        val_check_interval=max(1, module.loaders.steps // settings.evaluations),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=settings.log_every,
        enable_progress_bar=progress,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder, name="logs", version=""),
        callbacks=[*own, *callbacks],
    )
