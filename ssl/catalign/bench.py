"""``catalign bench``: a protocol, or all of them, on trained runs; several runs are seeds of one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from catalign import registry
from catalign.artifacts import digest
from catalign.config import check, preset
from catalign.errors import CatalignError
from catalign.evaluation.base import Context, Metrics, Result, merge, save_results
from catalign.pipeline import Outcomes, console, context_of, measure
from catalign.training.run import Run

ALL = "all"


def bench(runs: Sequence[Run], protocol: str, overrides: Sequence[str] = (), output: Path | None = None) -> None:
    """Measure runs and print the merged results.

    Args:
        runs: Seeds of one config.
        protocol: Its name, or ``all``: then a protocol that is skipped or fails stops no other.
        overrides: Options of protocols, such as ``evaluation.images.folder=PATH``. What a run measures with others
            than its own goes to its folder ``bench``, and its own results stay.
        output: Folder for the merged results, one JSON per row; of ``all`` in folders of the protocols' names.

    Raises:
        CatalignError: A seed that occurs twice, an unknown protocol or option, no result of a protocol that was named,
            or one that failed.
    """
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise CatalignError(f"a seed occurs twice among the runs: {seeds}", "give each run of a row its own seed")
    names = every_protocol(runs[0]) if protocol == ALL else [protocol]
    for run in runs:
        set_options(run, names)
    own = runs[0].config.evaluation
    for run in runs:
        set_options(run, names, overrides)
    contexts, outcomes = [context_of(run) for run in runs], Outcomes()
    for name in names:
        chosen = runs[0].config.evaluation.get(name)
        other = None if chosen == own.get(name) else f"bench/{digest(chosen)}/{name}"  # the run's own result stays
        merged = _merged(contexts, name, outcomes, other)
        if output is not None:
            save_results(merged, output / name if protocol == ALL else output)
        for result in merged:
            show(result)
        if other and merged:
            console.print(f"with other options than the run's own: {', '.join(str(run.path / other) for run in runs)}")
    if protocol == ALL:
        measured = [name for name in names if name not in {**outcomes.skipped, **outcomes.failed}]
        console.print(f"[green]measured[/] {len(measured)} of {len(names)} protocols: {', '.join(measured) or 'none'}")
    outcomes.tell()
    if outcomes.failed:
        raise CatalignError(f"failed: {', '.join(outcomes.failed)}", "see the reason above")
    if protocol != ALL and not merged:
        raise CatalignError(f"protocol {protocol!r} wrote no result", "see the reason above")


def set_options(run: Run, names: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Give a run protocols that its config lacks, as their YAML files have them, and others of their options.

    Its folder keeps the config that it has.

    Raises:
        CatalignError: There is no such protocol or option.
    """
    values = run.config.model_dump(mode="json")
    evaluation, changes = values["evaluation"], _changes(overrides)
    for name in dict.fromkeys([*names, *changes]):
        if name not in evaluation and (options := preset("evaluation", name)):
            evaluation[name] = options
    for name, options in changes.items():
        changed = {"name": name, **evaluation.get(name, {}), **options}
        given = {key: value for key, value in changed.items() if key != "name"}
        registry.validate("protocol", changed["name"], given, f"evaluation.{name}")
        evaluation[name] = changed
    run.config = check(values)


def _changes(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options by protocol, from words such as ``evaluation.images.folder=PATH``."""
    remedy = "write evaluation.PROTOCOL.OPTION=VALUE, with lists as [a, b]"
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise CatalignError(f"{' '.join(overrides)}: {getattr(error, 'problem', error)}", remedy) from None
    changes = given.get("evaluation", {})
    for name, options in changes.items():
        if not isinstance(options, dict):
            raise CatalignError(f"evaluation.{name}={options} names no option of a protocol", remedy)
    return changes


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


def show(result: Result) -> None:
    """Print a result: metrics down, ours and the baselines across, in several tables where one would be too wide."""
    terminal, columns = Console(), {"ours": result.metrics, **result.baselines}
    terminal.print(f"{result.benchmark}: {result.row}  ({result.protocol['id']}, {len(result.seeds)} seed(s))")
    widths = {name: max(len(name), len("0.0000")) + 2 for name in columns}
    room = terminal.width - max(map(len, result.metrics), default=0) - widths["ours"]
    shown = ["ours"]
    for name in result.baselines:
        if len(shown) > 1 and sum(widths[other] for other in (*shown[1:], name)) > room:
            terminal.print(_table(result, {name: columns[name] for name in shown}))
            shown = ["ours"]
        shown.append(name)
    terminal.print(_table(result, {name: columns[name] for name in shown}))


def _table(result: Result, columns: Mapping[str, Metrics]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)  # the metric is the end of the key: never cut it
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for key in result.metrics:
        values = (metrics.get(key, []) for metrics in columns.values())
        table.add_row(key, *(f"{sum(v) / len(v):.4f}" if v else "" for v in values))
    return table
