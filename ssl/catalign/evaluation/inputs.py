"""What protocols read besides a run's stores: files of their own, texts as vectors, what a row learned from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from catalign.evaluation.base import Context, QueryEmbedder, Skipped


def data_file(context: Context, key: str, given: str | None, usual: Path, remedy: str) -> Path:
    """A protocol's own data: the path that its config gives, else ``usual`` under data.root.

    Args:
        context: What is measured.
        key: The protocol and option, such as ``"kagl.qrels"``.
        given: The option's value.
        usual: A file or folder.
        remedy: Where it comes from and what it must hold.

    Raises:
        Skipped: It does not exist.
    """
    root = context.config.data.root if context.config else None
    path = Path(given) if given else Path(root) / usual if root else None
    if path is None or not path.expanduser().exists():
        where = f"{path} does not exist" if path else "data.root is not set"
        raise Skipped(
            f"{key.partition('.')[0]} needs {usual.name}: {where}",
            f"put {usual} under data.root, or give evaluation.{key}=PATH ({remedy})",
        )
    return path.expanduser()


def text_vectors(embedder: QueryEmbedder, texts: Iterable[str]) -> np.ndarray:
    """Texts as ``(n, D)`` unit vectors, and a text of no known word as zeros."""
    texts = list(texts)
    known = embedder.knows(texts)
    found = embedder.text([text for text, has in zip(texts, known, strict=True) if has])
    vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    vectors[known] = found
    return vectors


def training(context: Context) -> str:
    """What a run's encoder learned from, in words for tables."""
    stages = context.config.stages.values() if context.config else ()
    return f"{context.catalogue.name}: {', then '.join(' + '.join(stage.objectives) for stage in stages)}"
