"""The one LightningModule: it serves every stage."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from catalign.config import TrainerConfig
from catalign.data.batches import Batch, BatchLoader
from catalign.errors import CatalignError
from catalign.objectives.base import Forward, run_objectives
from catalign.training import monitors
from catalign.training.loaders import Loaders
from catalign.training.model import Model
from catalign.training.optim import build_optimizer, build_scheduler


def step_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, well mixed (the finaliser of SplitMix64)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class StageModule(pl.LightningModule):
    """Optimise a model's objectives on a catalogue.

    Every random choice of a step is drawn from generators seeded by (seed, step), so a resumed run needs no random
    state: it repeats the very numbers of an uninterrupted one.

    Args:
        model: Encoders and objectives.
        trainer_config: Optimisation settings.
        loaders: Where batches come from.
        seed: The run's seed.
    """

    def __init__(
        self,
        model: Model,
        trainer_config: TrainerConfig,
        loaders: Loaders,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.loaders, self.seed = model, trainer_config, loaders, seed
        self.history: list[dict[str, Any]] = []
        self._seconds, self._clock = 0.0, time.perf_counter()
        self._validation: list[dict[str, float]] = []
        self._embedded: dict[str, list[Tensor]] = {}

    def train_dataloader(self) -> BatchLoader:
        """Batches of the stage's split, one long epoch."""
        return self.loaders.train(rank=self.global_rank, world=self.trainer.world_size)

    def val_dataloader(self) -> BatchLoader:
        """The same validation batches at every pass."""
        return self.loaders.val(rank=self.global_rank, world=self.trainer.world_size)

    def configure_optimizers(self) -> Any:
        """AdamW and a warm-up cosine over optimiser steps."""
        optimizer = build_optimizer(self.model, self.settings)
        steps = self.loaders.steps // self.settings.accumulate
        scheduler = build_scheduler(optimizer, self.settings, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _losses(self, batch: Batch, step: int, salt: int) -> dict[str, dict[str, Tensor]]:
        seed = step_seed(self.seed, step, self.global_rank, salt)
        torch.manual_seed(seed)  # dropout draws from the global generator
        generator = torch.Generator(device=self.device).manual_seed(seed)
        return run_objectives(self.model.tasks(), self.model.encoders, batch, generator, self.settings.gradient_chunks)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the objectives' losses."""
        outputs = self._losses(batch, batch_idx, salt=0)
        loss = torch.stack([outputs[key]["loss"] * self.model.weights[key] for key in outputs]).sum()
        if batch_idx % (self.settings.log_every * self.settings.accumulate) == 0:
            self._record(_flat("train", outputs), batch_idx)
            if not torch.isfinite(loss):  # looked at here only: reading a number waits for the device
                values = ", ".join(f"{key} {float(outputs[key]['loss'].detach()):.3g}" for key in outputs)
                raise CatalignError(f"the loss is not finite at step {batch_idx} ({values})", "lower trainer.lr")
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here: Lightning refuses to clip for a fused optimizer, though bf16 needs no gradient scaler."""
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses on held-out products, and clean embeddings for the monitors."""
        self._validation.append(_flat("val", self._losses(batch, batch_idx, salt=1)))
        clean = Forward(self.model.encoders, batch)
        for modality in self.model.encoders:
            self._embedded.setdefault(modality, []).append(self.model.embed(modality, clean(modality).pooled).float())

    def on_validation_epoch_end(self) -> None:
        """Average the pass, compute the monitors, warn of collapse."""
        values = _average(self._validation)
        embedded = {modality: torch.cat(parts)[:2048] for modality, parts in self._embedded.items()}
        for modality, features in embedded.items():
            if len(features) < monitors.FEWEST:
                continue
            values[f"monitor/{modality}/feature_std"] = monitors.feature_std(features)
            values[f"monitor/{modality}/rankme"] = monitors.rankme(features)
            values[f"monitor/{modality}/uniformity"] = monitors.uniformity(features)
        if len(embedded) > 1 and len({f.shape[1] for f in embedded.values()}) == 1:
            first, second = list(embedded.values())[:2]
            values["monitor/alignment"] = monitors.alignment(first, second)
        values |= {f"monitor/{k.split('/')[1]}/temperature": v for k, v in values.items() if k.endswith("/temperature")}
        self._validation, self._embedded = [], {}
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._record(values, step)
        if step > 0.5 * self.loaders.steps:  # an encoder fresh from its initialisation always looks flat
            for sentence in monitors.warnings_of(values):
                self.print(f"warning: {sentence}")
        shown = {k.removeprefix("val/"): v for k, v in values.items() if k.endswith("/loss")}
        self.log_dict({f"val {k.removesuffix('/loss')}": v for k, v in shown.items()}, prog_bar=True, logger=False)

    def _record(self, values: dict[str, float], step: int) -> None:
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        self.history.append({"step": step, "seconds": round(self._seconds, 2), "values": values})
        for logger in self.loggers:
            logger.log_metrics(values, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history beside the weights."""
        checkpoint["history"], checkpoint["seconds"] = self.history, self._seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the history of the interrupted session."""
        self.history, self._seconds = checkpoint["history"], checkpoint["seconds"]


def _flat(prefix: str, outputs: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    named = ((key, name, value) for key, values in outputs.items() for name, value in values.items())
    return {f"{prefix}/{key}/{name}": float(value.detach()) for key, name, value in named}


def _average(batches: list[dict[str, float]]) -> dict[str, float]:
    """Mean over batches; an objective in which a ``share`` of the rows takes part counts by that share."""
    means = {}
    for key in batches[0]:
        share = f"{key.rpartition('/')[0]}/share"
        weights = [1.0 if key == share else batch.get(share, 1.0) for batch in batches]
        total = sum(weight * batch[key] for weight, batch in zip(weights, batches) if weight > 0)
        if sum(weights) > 0:
            means[key] = total / sum(weights)
    return means
