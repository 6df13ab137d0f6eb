"""Files that are whole or absent: atomic writes, checksums, sealed folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from catalign.errors import CatalignError

MANIFEST = "manifest.json"


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it, synced to disk, only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner reads
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        CatalignError: The file is absent or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalignError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CatalignError(
            f"{path} is not valid JSON: {error}", "it was altered or cut short; make it again"
        ) from None


def digest(value: Any, length: int = 12) -> str:
    """A short SHA-256 of any JSON-like value: the same for equal values, on every machine."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def checksum(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: str | Path, **meta: Any) -> dict[str, Any]:
    """Write ``manifest.json``: ``meta`` and the size and checksum of every file in the folder.

    A folder is complete exactly when it has a manifest, so write the files first and seal last.
    """
    folder = Path(folder)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    }
    manifest = {**meta, "files": files}
    write_json(folder / MANIFEST, manifest)
    return manifest


@contextmanager
def sealed_folder(path: str | Path, **meta: Any) -> Iterator[Path]:
    """A temporary folder beside ``path`` that is sealed and takes its place only if the block ends without an error.

    Args:
        path: The folder to write; what is there is replaced at the end.
        **meta: Entries of the manifest; a mapping filled inside the block is written as it is at its end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        seal(temporary, **meta)
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner reads
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.rename(old / "replaced")
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Write a folder as the only process; ranks belong to the process that started them.

    Raises:
        CatalignError: Another process writes it.
    """
    if "LOCAL_RANK" in os.environ:
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        remedy = "wait for it to end, or stop it; or write another one: output=FOLDER"
        raise CatalignError(f"{folder} is being written by another process", remedy) from None
    try:
        yield
    finally:
        lock.release()


def is_sealed(folder: str | Path) -> bool:
    """Whether the folder was written to its end."""
    return (Path(folder) / MANIFEST).is_file()


def unseal(folder: str | Path, what: str, remedy: str, *, verify: bool = True) -> dict[str, Any]:
    """Read a sealed folder's manifest and check its files.

    Args:
        folder: The sealed folder.
        what: What it holds, for the message ("embedding store").
        remedy: The command that makes it again.
        verify: Compare contents with their checksums, not only sizes.

    Raises:
        CatalignError: The folder is absent, unfinished, or a file in it is missing, truncated or altered.
    """
    folder = Path(folder)
    if not is_sealed(folder):
        state = "is unfinished (it has no manifest.json)" if folder.is_dir() else "does not exist"
        raise CatalignError(f"{what} {folder} {state}", remedy)
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CatalignError(f"{what}: {path} is missing", remedy)
        if path.stat().st_size != expected["bytes"]:
            raise CatalignError(f"{what}: {path} has {path.stat().st_size} bytes, not {expected['bytes']}", remedy)
        if verify and checksum(path) != expected["sha256"]:
            raise CatalignError(f"{what}: {path} was altered (its checksum differs from the manifest's)", remedy)
    return manifest
