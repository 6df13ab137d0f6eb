"""Several runs beside each other: which of them are seeds of one variant, and what can be made of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from catalign.artifacts import digest
from catalign.errors import CatalignError
from catalign.provenance import portable
from catalign.reporting.svg import PALETTE
from catalign.training.run import Run

Made = TypeVar("Made")


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed: one column of a comparison.

    Attributes:
        name: The experiment's name, or the run's folder where two variants have the same.
        runs: At least one, by seed.
        colour: Its colour in every figure.
    """

    name: str
    runs: list[Run]
    colour: str

    @property
    def first(self) -> Run:
        """The run shown where one stands for all seeds."""
        return self.runs[0]

    @property
    def named(self) -> dict[str, Run]:
        """All its runs, by the variant's name, with the seed where there are several."""
        if len(self.runs) == 1:
            return {self.name: self.first}
        return {f"{self.name}, seed {run.config.seed}": run for run in self.runs}


def variants(runs: Sequence[Run]) -> list[Variant]:
    """Runs of one config as seeds of one variant, in the order given.

    Runs of one config of which two have the same seed, such as one made again by later code, are variants of their own.

    Raises:
        CatalignError: No run, or a folder given twice.
    """
    if not runs:
        raise CatalignError("a report of no run", "name run folders: catalign report runs/a/seed0 runs/b/seed0")
    folders = [run.path.resolve() for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise CatalignError(f"run {twice[0]} is given twice", "name each run folder once")
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(digest({**portable(run.config), "seed": None}), []).append(run)
    groups: list[list[Run]] = []
    for some in alike.values():
        distinct = len({run.config.seed for run in some}) == len(some)
        groups += [sorted(some, key=lambda run: run.config.seed)] if distinct else [[run] for run in some]
    names = [group[0].config.name for group in groups]
    above = Path(os.path.commonpath([folder.parent for folder in folders]))
    named = [
        name if names.count(name) == 1 else group[0].path.resolve().relative_to(above).as_posix()
        for name, group in zip(names, groups, strict=True)
    ]
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(groups))]
    return [Variant(*of) for of in zip(named, groups, colours, strict=True)]


def firsts(compared: Sequence[Variant]) -> dict[str, Run]:
    """One run of each variant, by the variant's name."""
    return {variant.name: variant.first for variant in compared}


def every(compared: Sequence[Variant]) -> dict[str, Run]:
    """All runs of all variants, by name."""
    return {name: run for variant in compared for name, run in variant.named.items()}


def each(runs: Mapping[str, Run], make: Callable[[Run], Made]) -> tuple[dict[str, Made], list[str]]:
    """What can be made of each run, and a sentence on every run of which it cannot.

    Raises:
        CatalignError: It can be made of none; this is the first one's reason.
    """
    made: dict[str, Made] = {}
    failed: dict[str, CatalignError] = {}
    for name, run in runs.items():
        try:
            made[name] = make(run)
        except CatalignError as error:
            failed[name] = error
    if failed and not made:
        raise next(iter(failed.values()))
    return made, [f"{name} is left out: {'; '.join(filter(None, (e.problem, e.remedy)))}" for name, e in failed.items()]
