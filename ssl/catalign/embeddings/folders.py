"""Whole folders that are complete or absent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catalign.artifacts import seal


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
