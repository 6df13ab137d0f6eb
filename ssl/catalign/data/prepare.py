"""From a source to a sealed folder that a :class:`~catalign.data.catalogue.Catalogue` opens."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from filelock import FileLock
from joblib import cpu_count
from tqdm.auto import tqdm

from catalign.artifacts import digest, is_sealed, seal
from catalign.config import ColumnsConfig, DataConfig
from catalign.data import log_files
from catalign.data.assemble import assemble
from catalign.data.chunks import Part, Plan, process
from catalign.data.sources import Chunk, Source
from catalign.errors import CatalignError, unknown
from catalign.registry import build

VERSION = 1
"""Part of every fingerprint: raise it when prepared catalogues would come out differently."""

CHUNK_ROWS = 256
"""Rows decoded as one task; what is in memory at a time is twice this per worker."""
_SETTINGS = {"columns", "split", "image_size", "tokenizer", "vocabulary_size", "max_tokens"}


def open_source(config: DataConfig) -> tuple[Source, ColumnsConfig]:
    """The source a config names (its fallback when data.root is not given), and what the source's columns mean.

    Raises:
        CatalignError: The source does not exist.
    """
    use_fallback = uses_fallback(config)
    if config.home is not None and not use_fallback:
        _check_local(config)
    component = config.fallback if use_fallback and config.fallback else config.source
    columns = columns_of(config)
    where = "data.fallback" if use_fallback else "data.source"
    return build("source", component.name, where=where, **component.options), columns


def _check_local(config: DataConfig) -> None:
    """Check that the files of a public data set are there; the error says where it is public."""
    log = config.interactions.path if config.interactions is not None else None
    files = {f"data.source.{option}": config.source.options.get(option) for option in ("path", "attributes")}
    for key, path in {"data.interactions.path": log, **files}.items():
        if path is not None and not Path(str(path)).expanduser().exists():
            name = str(path).removeprefix(f"{config.root}/")  # "None/…" where there is none
            where = f"below data.root={config.root}" if config.root else "as data.root is not given"
            raise CatalignError(
                f"{config.name}: no file {name} {where}",
                f"it is public at {config.home}; copy it into a folder and say data.root=FOLDER (or set the "
                f"environment variable CATALIGN_DATA), or name the file itself: {key}=FILE",
            )


def uses_fallback(config: DataConfig) -> bool:
    """Whether the fallback stands in: there is one, and neither a root nor an existing file was given."""
    path = config.source.options.get("path")
    given = bool(config.root) or (path is not None and Path(str(path)).expanduser().exists())
    return config.fallback is not None and not given


def columns_of(config: DataConfig) -> ColumnsConfig:
    """What the columns of the source in use mean."""
    return (config.fallback_columns or config.columns) if uses_fallback(config) else config.columns


def check_columns(there: Iterable[str], columns: ColumnsConfig) -> None:
    """Check that every mapped column is there.

    Raises:
        CatalignError: One is not; lists those there are, nearest first.
    """
    there = list(there)
    for original in columns.rename:
        if original not in there:
            raise _missing("data.columns.rename", original, there)
    renamed = [columns.rename.get(column, column) for column in there]
    for name, packed in columns.unpacked.items():
        if packed not in renamed:
            raise _missing("data.columns.unpack", packed, renamed)
        if name in renamed:
            raise CatalignError(
                f"data.columns.unpack.{packed} makes a column {name!r}, which the source has already",
                "choose another name",
            )
    renamed += columns.unpacked
    mapped = {"id": columns.id, "image": columns.image, "group": columns.group, "split": columns.split}
    for key, column in mapped.items():
        if column is not None and column not in renamed:
            raise _missing(f"data.columns.{key}", column, renamed, f", or data.columns.{key}=null for none")
    for key, some in (("text", columns.read), ("attributes", columns.attributes)):
        for column in some:
            if column not in renamed:
                raise _missing(f"data.columns.{key}", column, renamed)


def _missing(key: str, column: str, there: list[str], otherwise: str = "") -> CatalignError:
    error = unknown("column", column, there)
    return CatalignError(f"{key} names column {column!r}, which the source does not have", f"{error.remedy}{otherwise}")


def fingerprint(source: Source, columns: ColumnsConfig, config: DataConfig) -> str:
    """A hash of the source's content and of every setting that changes what is prepared."""
    settings = config.model_copy(update={"columns": columns}).model_dump(mode="json", include=_SETTINGS)
    settings["columns"]["text"] = list(columns.text)  # the order matters, the sampling weights do not
    if not columns.unpack:
        del settings["columns"]["unpack"]  # what was prepared before there was this key stays valid
    if config.interactions is not None:
        settings["interactions"] = log_files.fingerprint(config.interactions)
    return digest([VERSION, source.fingerprint(), settings])


def prepare(config: DataConfig, progress: bool = True) -> Path:
    """Prepare a catalogue, unless it already is.

    A preparation that was stopped goes on where it was; two at the same time wait for each other.

    Args:
        config: The catalogue.
        progress: Show a progress bar.

    Returns:
        The sealed folder, ``<cache>/<name>-<fingerprint>``.

    Raises:
        CatalignError: The source or a column is missing, there are no rows, or too many of them are bad.
    """
    source, columns = open_source(config)
    cache = Path(config.cache).expanduser()
    name = fingerprint(source, columns, config)
    folder = cache / f"{config.name}-{name}"
    if is_sealed(folder):
        return folder
    check_columns(source.columns(), columns)
    plan = Plan(columns, config.image_size, source.images, cache / f".{folder.name}.parts", source.bare)
    for new in (folder, plan.parts):
        new.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not is_sealed(folder):
            parts = decode(source, plan, config, progress)
            meta = assemble(folder, plan, parts, config, source)
            seal(folder, name=config.name, fingerprint=name, version=VERSION, **meta)
        shutil.rmtree(plan.parts, ignore_errors=True)
    return folder


def decode(source: Source, plan: Plan, config: DataConfig, progress: bool) -> list[Part]:
    """Check and decode every chunk of the source that is not done yet, in parallel."""
    workers = config.workers or cpu_count()
    parts: list[Part] = []
    with tqdm(total=source.rows, desc=f"preparing {config.name}", unit=" products", disable=not progress) as bar:

        def todo() -> Iterator[tuple[int, int, Chunk, Plan]]:
            first = 0
            for number, chunk in enumerate(_renamed(source, plan.columns)):
                rows = len(next(iter(chunk.values())))
                parts.append(Part(plan.parts, number))
                if parts[-1].done:
                    bar.update(rows)
                else:
                    yield number, first, chunk, plan
                first += rows

        few = source.rows is not None and source.rows <= CHUNK_ROWS
        for rows in _serial(todo()) if workers == 1 or few else _parallel(todo(), workers):
            bar.update(rows)
    return parts


def _renamed(source: Source, columns: ColumnsConfig) -> Iterator[Chunk]:
    used = [columns.id, columns.image, *columns.read, *columns.attributes, columns.group, columns.split]
    named = [columns.unpacked.get(column, column) for column in used if column is not None]
    wanted = list(dict.fromkeys(columns.original(column) for column in named))
    for chunk in source.chunks(CHUNK_ROWS, wanted):
        yield {columns.rename.get(column, column): values for column, values in chunk.items()}


def _serial(tasks: Iterator[tuple[int, int, Chunk, Plan]]) -> Iterator[int]:
    for task in tasks:
        yield process(*task)


def _parallel(tasks: Iterator[tuple[int, int, Chunk, Plan]], workers: int) -> Iterator[int]:
    # loky, scikit-learn's pool: unlike the standard library's it neither forks a process that already has threads
    # (torch, arrow) nor needs an `if __name__ == "__main__"` in the user's script.
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=workers, timeout=10)
    running: set[Future[int]] = set()
    try:
        for task in tasks:
            if len(running) >= 2 * workers:  # bounds the chunks in memory
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
            running.add(executor.submit(process, *task))
        for future in running:
            yield future.result()
    except BaseException:
        executor.shutdown(wait=False, kill_workers=True)
        raise
