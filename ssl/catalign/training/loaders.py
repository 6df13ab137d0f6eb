"""The batches of a stage: which rows it trains on, which it is validated on, and for how many steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from catalign.config import StageConfig, TrainerConfig
from catalign.data.batches import BatchLoader
from catalign.data.catalogue import Catalogue
from catalign.data.history_batches import BEHAVIOUR, HistoryLoader
from catalign.errors import CatalignError
from catalign.training.model import Model
from catalign.training.run import Run

MakeLoader = Callable[..., BatchLoader]
"""From ``rank`` and ``world`` to that rank's loader."""


class Loaders(NamedTuple):
    """What a stage reads.

    Attributes:
        train: Makes the loader of training batches, one long epoch.
        val: Makes the loader of validation batches, the same at every pass and for every seed.
        steps: Training batches of one rank.
    """

    train: MakeLoader
    val: MakeLoader
    steps: int


def fields_of(run: Run, name: str, key: Literal["text", "second_text"] = "text") -> dict[str, float] | None:
    """The stage's own sampling weights of text columns, without those that the fallback of a public catalogue lacks."""
    chosen, data = getattr(run.config.stages[name], key), run.config.data
    if chosen is None or data.fallback_columns is None:
        return chosen
    there = run.catalogue().fields
    return {field: w for field, w in chosen.items() if field in there or field not in data.columns.text} or None


def training_rows(catalogue: Catalogue, stage: StageConfig) -> np.ndarray:
    """The products that a stage trains on."""
    return catalogue.rows(*stage.split, share=stage.share, without=stage.without)


def loaders_of(
    run: Run, name: str, model: Model, settings: TrainerConfig, features: dict[str, torch.Tensor]
) -> Loaders:
    """The loaders of a stage: of products, or of users where it reads behaviour.

    Raises:
        CatalignError: There are fewer rows than a batch has, or no validation rows.
    """
    catalogue, stage = run.catalogue(), run.config.stages[name]
    options: dict[str, Any] = {
        "modalities": tuple(model.encoders),
        "seed": run.config.seed,
        "fields": fields_of(run, name),
        "second_fields": fields_of(run, name, "second_text"),
        "features": features or None,
    }
    rows = training_rows(catalogue, stage)
    train: MakeLoader
    val: MakeLoader
    if BEHAVIOUR in model.encoders:
        options["longest"] = model.encoders[BEHAVIOUR].max_length
        unit, train = "users", partial(HistoryLoader, catalogue, rows, held_out=False, **options)
        val = partial(HistoryLoader, catalogue, rows, held_out=True, **options)
    else:
        unit, train = "products", partial(BatchLoader, catalogue, rows, **options)
        val = partial(BatchLoader, catalogue, catalogue.rows("val"), **options)
    count, held_out = (len(loader(batch_size=1, steps=0).rows) for loader in (train, val))
    if count < settings.batch_size:
        problem = f"stages.{name}: {count} training {unit} do not fill one batch of {settings.batch_size}"
        smaller = f"set stages.{name}.trainer.batch_size={count} or less"
        raise CatalignError(problem, smaller if count > 1 else f"train on more {unit}")
    per_step = settings.batch_size * settings.accumulate * settings.devices
    steps = settings.accumulate * (settings.max_steps or math.ceil(settings.epochs * count / per_step))
    size = max(1, min(settings.batch_size, held_out // settings.devices))
    checks = max(1, min(settings.eval_batches, held_out // (size * settings.devices)))
    return Loaders(
        partial(train, batch_size=settings.batch_size, steps=steps),
        # A fixed draw: the first users of a log are often its oldest and busiest, and like no others.
        partial(val, batch_size=size, steps=checks, seed=0),
        steps,
    )
