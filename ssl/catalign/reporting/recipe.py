"""How runs were made, and how to make them again: command, config, revision, versions, hardware."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from catalign.artifacts import read_json
from catalign.errors import CatalignError
from catalign.provenance import ABSENT, differences, portable
from catalign.reporting.comparison import Variant, each, every
from catalign.training.run import Run

HARDWARE = {"cpu": "Processor", "cores": "Cores", "memory_gb": "Memory, GB", "gpu": "GPU"}
APART = ("Seed", "Folder", "Training")
"""Lines of the table of runs that differ as a matter of course."""


def recipes(compared: Sequence[Variant]) -> dict[str, Any]:
    """What ran, run by run; of several variants also what they have in common and where their configs differ."""
    configs = [portable(variant.first.config) for variant in compared]
    differ = differences(configs, "name", "seed")  # those are what tells variants and runs apart
    runs, notes = each(every(compared), lambda run: what_ran(run, differ))
    table = {key: [_in_words(value) for value in values] for key, values in differ.items()}
    return {"runs": runs, "notes": notes, "columns": [v.name for v in compared], "differences": table} | {
        "facts": _facts(compared) if sum(len(variant.runs) for variant in compared) > 1 else []
    }


def what_ran(run: Run, differ: Collection[str] = ()) -> dict[str, Any]:
    """Command, stages, versions and hardware of a run, and its config as YAML.

    Args:
        run: The run.
        differ: Config keys to mark.

    Returns:
        What the template shows; ``config`` holds lines of YAML and whether each is marked.

    Raises:
        CatalignError: The run has no record.
    """
    config, record = run.config, run.record()
    if not record:
        raise CatalignError("the run folder has no run.json, so what ran is not recorded")
    stages = []
    for name, stage in config.stages.items():
        noted = record.get("stages", {}).get(name, {})
        parameters = noted.get("parameters", {})
        stages.append(
            {
                "name": name,
                "objectives": [(key, part.weight) for key, part in stage.objectives.items()],
                "locked": stage.locked,
                "seconds": noted.get("seconds"),
                "parameters": parameters if isinstance(parameters, dict) else {"model": parameters},
                "trainer": config.trainer_of(name),
                "done": name in run.stages,
            }
        )
    return {
        "stages": stages,
        "record": record,
        "name": config.name,
        "seed": config.seed,
        "path": str(run.path),
        **_machine(run, record),
        "config": list(_yaml(config.model_dump(mode="json"), differ)),
    }


def _machine(run: Run, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Hardware and versions as the run recorded them; older runs did so in their results only."""
    measured: dict[str, Any] = next((read_json(p) for p in sorted((run.path / "results").glob("*/*.json"))), {})
    hardware = record.get("hardware") or measured.get("hardware") or {}
    return {
        "hardware": {HARDWARE.get(name, name): value for name, value in hardware.items() if value is not None},
        "versions": record.get("versions") or measured.get("versions") or {},
    }


def _yaml(values: Mapping[str, Any], differ: Collection[str], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Lines of YAML, each with whether it belongs to one of the keys that differ."""
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", False
            yield from _yaml(value, differ, f"{prefix}{key}.")
        else:
            lines = OmegaConf.to_yaml({key: value}).splitlines()
            yield from ((indent + line, f"{prefix}{key}" in differ) for line in lines)


def _in_words(value: Any) -> str:
    if value is ABSENT:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(compared: Sequence[Variant]) -> list[tuple[str, list[str], bool]]:
    """Lines of the table of runs: a title, a cell per variant, and whether a difference explains other numbers."""
    described = [[_described(run) for run in variant.runs] for variant in compared]
    lines = []
    for key in dict.fromkeys(key for runs in described for facts in runs for key in facts):
        cells = [", ".join(dict.fromkeys(facts.get(key, "–") for facts in runs)) for runs in described]
        lines.append((key, cells, key not in APART and len(set(cells)) > 1))
    return lines


def _described(run: Run) -> dict[str, str]:
    record = run.record()
    machine, stages = _machine(run, record), record.get("stages", {})
    facts = {
        "Seed": run.config.seed,
        "Folder": run.path,
        "Stages finished": f"{len(run.stages)} of {len(run.config.stages)}",
        "Training": duration(sum(stages.get(name, {}).get("seconds") or 0 for name in run.stages)),
        "Git revision": record.get("git") or "not recorded",
        **machine["hardware"],
        **machine["versions"],
    }
    return {key: str(value) for key, value in facts.items()}


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: ``41 s``, ``12 min``, ``1 h 05``."""
    if seconds is None:
        return "not recorded"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def count(number: float) -> str:
    """A count in few characters: ``950``, ``1.2 M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"
