"""How far each pretext task got: its held-out loss before the first step and after the last."""

from __future__ import annotations

import math
from typing import Any

from catalign.artifacts import read_json
from catalign.errors import unknown
from catalign.evaluation.base import Context, Result, Skipped, protocol
from catalign.registry import register


@register("protocol", "pretext")
def pretext(context: Context, *, stages: list[str] | None = None) -> list[Result]:
    """Held-out losses of every stage's objectives, before training and at its end.

    Data: batches of the val split, the same ones at every evaluation of a stage, their views, masks and pairs drawn
    from the seed. Read from the stage's ``metrics.json``, not computed again.

    Metrics, keyed ``<stage>/<objective>/<metric>``: ``loss`` and whatever else the objective reports (accuracy, …), as
    last recorded; ``perplexity`` is exp(loss) of masked language modelling, in nats per masked token.

    Baselines: ``start`` (before the first step) under the same keys; ``unigram`` (for masked language modelling:
    every masked token is predicted from its frequency in the train split, the loss of a model that reads no context).

    Args:
        context: What is measured.
        stages: Stages to report; null for all finished ones.

    Raises:
        CatalignError: No such finished stage.
        Skipped: No stage has recorded a validation loss.
    """
    folders = context.run.stages if context.run else {}
    for stage in stages or []:
        if stage not in folders:
            raise unknown("finished stage", stage, folders)
    metrics: dict[str, float] = {}
    baselines: dict[str, dict[str, float]] = {"start": {}, "unigram": {}}
    details: dict[str, Any] = {}
    for stage in stages if stages is not None else folders:
        path = folders[stage] / "metrics.json"
        recorded = [entry for entry in read_json(path) if _values(entry)] if path.is_file() else []
        if not recorded:
            details[stage] = "no validation metrics"
            continue
        first, last = recorded[0], recorded[-1]
        details[stage] = {"steps": last["step"] - first["step"], "seconds": round(float(last["seconds"]), 1)}
        metrics |= _keyed(stage, _values(last))
        baselines["start"] |= _keyed(stage, _values(first))
        baselines["unigram"] |= _unigram(stage, _values(last))
    if not metrics:
        raise Skipped("pretext: no finished stage has recorded validation losses", "train a stage with a val split")
    record = protocol(
        "pretext",
        data=context.catalogue.fingerprint,
        split="val",
        evaluations="first and last of each stage",
        stages={stage: _choices(context, stage) for stage in details},
    )
    return [Result("pretext", context.name, record, metrics, {b: m for b, m in baselines.items() if m}, details)]


def _choices(context: Context, stage: str) -> dict[str, Any]:
    """What a held-out loss depends on besides the model: the tasks' options and the batches."""
    if context.config is None:
        return {}
    trainer = context.config.trainer_of(stage)
    objectives = {key: component.model_dump() for key, component in context.config.stages[stage].objectives.items()}
    return {"objectives": objectives, "batch_size": trainer.batch_size, "batches": trainer.eval_batches}


def _values(entry: dict[str, Any]) -> dict[str, float]:
    values = entry.get("values", {})
    found = {key.removeprefix("val/"): float(value) for key, value in values.items() if key.startswith("val/")}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _keyed(stage: str, values: dict[str, float]) -> dict[str, float]:
    """Values under the stage's name, with the perplexity of every loss that has a unigram loss beside it."""
    keyed = {f"{stage}/{key}": value for key, value in values.items() if not key.endswith("/unigram_loss")}
    for key, value in values.items():
        objective, _, metric = key.rpartition("/")
        if metric == "loss" and f"{objective}/unigram_loss" in values:
            keyed[f"{stage}/{objective}/perplexity"] = math.exp(min(value, 50.0))
    return keyed


def _unigram(stage: str, values: dict[str, float]) -> dict[str, float]:
    found = {key.removesuffix("unigram_loss"): v for key, v in values.items() if key.endswith("/unigram_loss")}
    keyed = {f"{stage}/{objective}loss": value for objective, value in found.items()}
    return keyed | {f"{stage}/{objective}perplexity": math.exp(min(value, 50.0)) for objective, value in found.items()}
