"""A run is a folder: its config, its stages, and what was made from them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from catalign.artifacts import digest, is_sealed, read_json, unseal, write_json
from catalign.config import Config, check
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError, unknown
from catalign.provenance import describe_hardware, describe_versions, git_revision
from catalign.training.content import describe_items
from catalign.training.model import WEIGHTS, Model, build_model, parents_of


class Run:
    """A run folder, new or finished.

    Attributes:
        path: The folder.
        config: The checked config it was made with.
    """

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path, self.config = Path(path), config
        self._catalogue: Catalogue | None = None

    @classmethod
    def create(cls, config: Config) -> Run:
        """Open the config's run folder for writing, making it if it is new."""
        run = cls(config.output, config)
        write_json(run.path / "config.json", config.model_dump(mode="json"))
        record = run.record()
        record.setdefault("started", time.strftime("%Y-%m-%d %H:%M:%S%z"))
        record["command"] = _typed(sys.argv)
        record |= {"git": git_revision(), "hardware": describe_hardware(), "versions": describe_versions()}
        write_json(run.path / "run.json", record)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder.

        Raises:
            CatalignError: The folder is no run.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            found = sorted(str(p.parent) for p in path.glob("**/config.json"))[:5] if path.is_dir() else []
            problem = f"{path} is not a run folder (no config.json)" if path.is_dir() else f"{path} does not exist"
            raise CatalignError(problem, f"runs here: {', '.join(found)}" if found else "make one with: catalign run")
        return cls(path, check(read_json(path / "config.json")).model_copy(update={"output": str(path)}))

    def record(self) -> dict[str, Any]:
        """What ``run.json`` holds: command, start, git revision, seconds per step."""
        path = self.path / "run.json"
        return read_json(path) if path.is_file() else {}

    def command(self) -> str:
        """The command line that made the run."""
        return str(self.record().get("command") or f"catalign run experiment={self.config.name}")

    def note(self, **entries: Any) -> None:
        """Merge entries into ``run.json``; mappings are merged one level deep."""
        record = self.record()
        for key, value in entries.items():
            record[key] = {**record.get(key, {}), **value} if isinstance(value, dict) else value
        write_json(self.path / "run.json", record)

    def catalogue(self) -> Catalogue:
        """The prepared catalogue; prepared again if it is not cached."""
        if self._catalogue is None:
            known = self.record().get("catalogue")
            if known is not None and is_sealed(known):
                self._catalogue = Catalogue.open(known).weighted(self.config.data)
            else:
                try:
                    self._catalogue = Catalogue.load(self.config.data)
                except CatalignError as error:
                    if known is None:
                        raise
                    problem = f"{self.path}: its prepared catalogue {known} is gone, and cannot be made again: {error}"
                    raise CatalignError(problem, "paths are relative to the folder in which the run was made") from None
                self.note(catalogue=str(self._catalogue.path))
        return self._catalogue

    def stage_path(self, name: str) -> Path:
        """Where a stage's weights, metrics and logs lie."""
        return self.path / "stages" / name

    @property
    def stages(self) -> dict[str, Path]:
        """The finished stages, in config order."""
        return {name: self.stage_path(name) for name in self.config.stages if is_sealed(self.stage_path(name))}

    @property
    def weights(self) -> str:
        """Digest of the last finished stage: its inputs and the checksums of what it holds.

        Raises:
            CatalignError: No stage is finished, or its files are missing or altered.
        """
        name, folder = self._finished()[-1]
        return digest(unseal(folder, f"stage {name!r}", _retrain(folder)))

    def _finished(self) -> list[tuple[str, Path]]:
        finished = list(self.stages.items())
        if not finished:
            raise CatalignError(
                f"{self.path} has no finished stage, so no checkpoint to load",
                f"train it: {self.command()}",
            )
        return finished

    def model(self, stage: str | None = None) -> Model:
        """The trained model of a stage, by default the last finished one, in evaluation mode.

        Raises:
            CatalignError: No such finished stage, or altered weights.
        """
        finished = dict(self._finished())
        if stage is not None and stage not in finished:
            raise unknown("finished stage", stage, finished)
        stage = stage or list(finished)[-1]
        unseal(finished[stage], f"stage {stage!r}", _retrain(finished[stage]))
        model = build_model(self.config, stage, self.catalogue())
        model.load(finished[stage] / WEIGHTS)
        return model.eval()

    def untrained(self) -> Model:
        """The last finished stage's model as it was before any training: the baseline beside every number."""
        stage = list(self.stages)[-1] if self.stages else list(self.config.stages)[-1]
        named = (stage, *parents_of(self.config, stage))
        model, *parents = (build_model(self.config, name, self.catalogue()).eval() for name in named)
        describe_items(stage, model, parents, self.catalogue())
        return model

    @property
    def results(self) -> list[Path]:
        """The result files, by protocol and row."""
        return sorted((self.path / "results").glob("*/*.json"))

    def _table(self) -> list[tuple[str, str, str]]:
        """Name, objectives and state of every stage."""
        noted, rows = self.record().get("stages", {}), []
        for name, stage in self.config.stages.items():
            seconds = noted.get(name, {}).get("seconds") or 0
            state = f"trained in {seconds:.0f} s" if name in self.stages else "not trained"
            rows.append((name, " + ".join(stage.objectives), state))
        return rows

    def __repr__(self) -> str:
        lines = [f"Run {self.path} (experiment {self.config.name}, seed {self.config.seed})"]
        lines += [f"  {name}: {objectives}, {state}" for name, objectives, state in self._table()]
        measured = dict.fromkeys(path.parent.name for path in self.results)
        return "\n".join([*lines, *([f"  results: {', '.join(measured)}"] if measured else [])])

    def _repr_html_(self) -> str:
        title = f"<p><b>{escape(str(self.path))}</b>: {escape(self.config.name)}, seed {self.config.seed}</p>"
        stages = _html(("stage", "objectives", ""), self._table())
        return title + stages + "".join(_folded(read_json(path)) for path in self.results)


def _typed(arguments: list[str]) -> str:
    """A command line as a shell takes it; ``python -m catalign.cli`` is ``catalign``."""
    program = Path(arguments[0])
    return shlex.join(["catalign" if program.stem in ("catalign", "cli") else program.name, *arguments[1:]])


def _folded(result: dict[str, Any]) -> str:
    """A result file as its protocol's id, which opens to its metrics and the trivial baselines'."""
    columns = {result["row"]: result["metrics"], **result["baselines"]}
    rows = [
        (key, *(f"{entries[key]['mean']:.4f}" if key in entries else "" for entries in columns.values()))
        for key in result["metrics"]
    ]
    summary = f"<summary>{escape(result['protocol']['id'])}</summary>"
    return f"<details>{summary}{_html(('metric', *columns), rows)}</details>"


def _html(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in body)}</table>"


def _retrain(folder: Path) -> str:
    return f"delete {folder} and run again to train it anew"
