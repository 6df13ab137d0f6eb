"""``catalign bench``: a protocol, or all of them, on trained runs; several are seeds of one row, and so are results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError

from catalign import registry
from catalign.artifacts import digest
from catalign.config import check
from catalign.errors import CatalignError
from catalign.evaluation.base import Context, Metrics, Result, merge, save_results
from catalign.pipeline import Outcomes, console, context_of, measure, protocol_of
from catalign.training.run import Run

ALL = "all"


def bench(
    runs: Sequence[Run],
    protocol: str,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    *,
    measured: Sequence[Result] = (),
) -> None:
    """Measure runs and print the merged results.

    Args:
        runs: Seeds of one config.
        protocol: Its name, or ``all``: then a protocol that is skipped or fails stops no other.
        overrides: Options of protocols, such as ``evaluation.images.folder=PATH``. What a run measures with others
            than its own goes to its folder ``bench``, and its own results stay.
        output: Folder for the merged results, one JSON per row; of ``all`` in folders of the protocols' names.
        measured: The rows' results of other seeds, whose runs may be on another machine.

    Raises:
        CatalignError: A seed that occurs twice, an unknown protocol or option, no result of a protocol that was named,
            one that failed, or a result of another protocol.
    """
    _check_inputs(runs, protocol, measured)
    names = every_protocol(runs[0]) if protocol == ALL else [protocol]
    others = {name for run in runs for name in set_options(run, overrides)}
    contexts, outcomes = [context_of(run) for run in runs], Outcomes()
    try:
        for name in names:
            other = None  # the folder for what is measured with other options: the runs' own results stay
            if name in others:
                other = f"bench/{digest(runs[0].config.evaluation[name].model_dump(mode='json'))}/{name}"
            merged = _merged(contexts, name, outcomes, other, measured)
            if output is not None:
                save_results(merged, output / name if protocol == ALL else output)
            for result in merged:
                show(result)
            if other and merged:
                folders = ", ".join(str(run.path / other) for run in runs)
                console.print(f"with other options than the run's own: {escape(folders)}", soft_wrap=True)
        if protocol == ALL:
            done = [name for name in names if name not in {**outcomes.skipped, **outcomes.failed}]
            console.print(f"[green]measured[/] {len(done)} of {len(names)} protocols: {', '.join(done) or 'none'}")
    finally:
        outcomes.tell()
    if outcomes.failed:
        raise CatalignError(f"failed: {', '.join(outcomes.failed)}", "see the reason above")
    if protocol != ALL and not merged:
        raise CatalignError(f"protocol {protocol!r} wrote no result", "see the reason above")


def _check_inputs(runs: Sequence[Run], protocol: str, measured: Sequence[Result]) -> None:
    """Before anything is measured: every seed once, and results of the protocol alone."""
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise CatalignError(f"a seed occurs twice among the runs: {seeds}", "give each run of a row its own seed")
    for result in measured:
        if both := sorted({*seeds} & {*result.seeds}):
            raise CatalignError(f"row {result.row!r} has a result of seed {both[0]} already", "leave out run or file")
        if result.benchmark != protocol:
            problem = f"row {result.row!r} is a result of {result.benchmark}, not of {protocol}"
            raise CatalignError(problem, f"catalign bench {result.benchmark} … merges it")


def set_options(run: Run, overrides: Sequence[str]) -> list[str]:
    """Give protocols other options than a run has for them; its folder keeps the config that it has.

    Returns:
        The protocols whose options are now others.

    Raises:
        CatalignError: There is no such protocol or option.
    """
    changes, others, values = _changes(overrides), [], run.config.model_dump(mode="json")
    for name, options in changes.items():
        before = protocol_of(run.config, name).model_dump(mode="json")
        changed = {**before, **options}
        given = {key: value for key, value in changed.items() if key != "name"}
        registry.validate("protocol", changed["name"], given, f"evaluation.{name}")
        values["evaluation"][name] = changed
        if changed != before:
            others.append(name)
    run.config = check(values)
    return others


def _changes(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options by protocol, from words such as ``evaluation.images.folder=PATH``."""
    remedy = "write evaluation.PROTOCOL.OPTION=VALUE, with lists as [a, b]"
    for word in overrides:
        if not re.match(r"evaluation\.\w+\.\w[\w.]*=", word):
            raise CatalignError(f"{word!r} is no option of a protocol", remedy)
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise CatalignError(f"{' '.join(overrides)}: {getattr(error, 'problem', error)}", remedy) from None
    return given.get("evaluation", {})


def every_protocol(run: Run) -> list[str]:
    """The protocols of a run's config, then all others that there are, as their YAML files have them."""
    return [*run.config.evaluation, *(name for name in registry.names("protocol") if name not in run.config.evaluation)]


def _merged(
    contexts: Sequence[Context], name: str, outcomes: Outcomes, folder: str | None, measured: Sequence[Result]
) -> list[Result]:
    rows: dict[str, list[Result]] = {}
    for context in contexts:
        assert context.run is not None
        for written in measure(context, name, outcomes, context.run.path / folder if folder else None):
            rows.setdefault(written.stem, []).append(Result.load(written))
    for result in measured:
        rows.setdefault(result.row, []).append(result)
    merged = [merge(results) for results in rows.values()]
    every = sorted({seed for result in merged for seed in result.seeds})
    lacking = [result for result in merged if result.seeds != every]
    if measured and lacking:
        problem = f"row {lacking[0].row!r} has seeds {lacking[0].seeds}, while others have {every}"
        raise CatalignError(problem, "name the result files of all rows, or of none")
    return merged


def show(result: Result) -> None:
    """Print a result: metrics down, ours and the baselines across, in several tables where one would be too wide."""
    terminal, endless = Console(), Console(width=10_000)  # the second to measure: tables never exceed their console
    title = f"{result.benchmark}: {result.row}  ({result.protocol['id']}, {len(result.seeds)} seed(s))"
    terminal.print(escape(title), soft_wrap=True)
    shown = {"ours": result.metrics}
    for name, metrics in result.baselines.items():
        wider = {**shown, name: metrics}
        if len(shown) > 1 and endless.measure(_table(result, wider)).maximum > terminal.width:
            terminal.print(_table(result, shown))
            wider = {"ours": result.metrics, name: metrics}
        shown = wider
    terminal.print(_table(result, shown))


def _table(result: Result, columns: Mapping[str, Metrics]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)  # the metric is the end of the key: never cut it
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for key in result.metrics:
        values = (metrics.get(key, []) for metrics in columns.values())
        table.add_row(key, *(f"{sum(v) / len(v):.4f}" if v else "" for v in values))
    return table
