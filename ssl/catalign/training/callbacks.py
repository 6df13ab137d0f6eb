"""Lightning callbacks of a stage: checkpoints at whole steps, a clean stop, the history on disk."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from catalign.artifacts import atomic, write_json
from catalign.training.module import StageModule


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
