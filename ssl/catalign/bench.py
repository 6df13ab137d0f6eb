"""``catalign bench``: a protocol, or all of them, on trained runs; several runs are seeds of one row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from catalign import registry
from catalign.artifacts import digest
from catalign.config import check
from catalign.errors import CatalignError
from catalign.evaluation.base import Context, Result, merge, save_results
from catalign.pipeline import Outcomes, console, context_of, measure
from catalign.training.run import Run

ALL = "all"


def bench(runs: Sequence[Run], protocol: str, overrides: Sequence[str] = (), output: Path | None = None) -> None:
    """Measure runs and print the merged results.

    Args:
        runs: Seeds of one config.
        protocol: Its name, or ``all``: then a protocol that is skipped or fails stops no other.
        overrides: Options of protocols, such as ``evaluation.images.folder=PATH``. What a run measures with others
            than its config's goes to its folder ``bench``, and its own results stay.
        output: Folder for the merged results, one JSON per row; of ``all`` in folders of the protocols' names.

    Raises:
        CatalignError: An unknown protocol or option, no result of a protocol that was named, or one that failed.
    """
    own = runs[0].config.evaluation
    for run in runs:
        set_options(run, overrides)
    contexts, outcomes = [context_of(run) for run in runs], Outcomes()
    names = every_protocol(runs[0]) if protocol == ALL else [protocol]
    for name in names:
        altered = name in own and own[name] != runs[0].config.evaluation[name]  # the run's own result stays
        merged = _merged(contexts, name, outcomes, f"bench/{digest(overrides)}/{name}" if altered else None)
        if output is not None:
            save_results(merged, output / name if protocol == ALL else output)
        for result in merged:
            show(result)
    if protocol == ALL:
        _summarise(names, outcomes)
    if outcomes.failed:
        raise CatalignError(f"failed: {', '.join(outcomes.failed)}", "see the reason above")
    if protocol != ALL and not merged:
        raise CatalignError(f"protocol {protocol!r} wrote no result", "see the reason above")


def set_options(run: Run, overrides: Sequence[str]) -> None:
    """Give protocols other options than the run was made with; its folder keeps the config that it has.

    Raises:
        CatalignError: There is no such protocol or option.
    """
    if not overrides:
        return
    values = run.config.model_dump(mode="json")
    changes: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    for name, options in changes["evaluation"].items():
        changed = {"name": name, **values["evaluation"].get(name, {}), **options}
        given = {key: value for key, value in changed.items() if key != "name"}
        registry.validate("protocol", changed["name"], given, f"evaluation.{name}")
        values["evaluation"][name] = changed
    run.config = check(values)


def every_protocol(run: Run) -> list[str]:
    """The protocols of a run's config, then all others that there are, with their defaults."""
    return [*run.config.evaluation, *(name for name in registry.names("protocol") if name not in run.config.evaluation)]


def _merged(contexts: Sequence[Context], name: str, outcomes: Outcomes, folder: str | None) -> list[Result]:
    rows: dict[str, list[Result]] = {}
    for context in contexts:
        assert context.run is not None
        for written in measure(context, name, outcomes, context.run.path / folder if folder else None):
            rows.setdefault(written.stem, []).append(Result.load(written))
    return [merge(results) for results in rows.values()]


def _summarise(names: Sequence[str], outcomes: Outcomes) -> None:
    """Say which protocols were measured, and of the others why not and what they need."""
    without = {**outcomes.skipped, **outcomes.failed}
    measured = [name for name in names if name not in without]
    console.print(f"[green]measured[/] {len(measured)} of {len(names)} protocols: {', '.join(measured) or 'none'}")
    for name, reason in without.items():
        colour, word = ("red", "failed") if name in outcomes.failed else ("yellow", "skipped")
        console.print(f"[{colour}]{word}[/] {name}: {reason}")


def show(result: Result) -> None:
    """Print a result in the terminal: metrics down, ours and the baselines across."""
    title = f"{result.benchmark}: {result.row}  ({result.protocol['id']}, {len(result.seeds)} seed(s))"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)  # eight columns fit into 80 characters
    table.add_column("metric", no_wrap=True)  # the metric is the end of the key: never cut it
    for name in ("ours", *result.baselines):
        table.add_column(name, justify="right", overflow="fold")
    for key, values in result.metrics.items():
        others = [metrics.get(key, []) for metrics in result.baselines.values()]
        table.add_row(key, *(f"{sum(v) / len(v):.4f}" if v else "" for v in [values, *others]))
    Console().print(table)
