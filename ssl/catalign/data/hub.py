"""Hugging Face datasets as a source of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from catalign.artifacts import digest
from catalign.data.sources import Chunk, Source, folder_fingerprint
from catalign.errors import CatalignError
from catalign.registry import register


@register("source", "hub")
class Hub(Source):
    """A Hugging Face dataset by name, streamed: nothing but the prepared catalogue is kept on disk.

    Args:
        path: The dataset's name on the hub, or a local folder that the datasets library reads.
        subset: Its configuration, where it has several.
        split: Which of the dataset's own splits to read as the catalogue.
        revision: A commit; the newest by default. With a commit given, a prepared catalogue opens offline.
    """

    def __init__(
        self, *, path: str, subset: str | None = None, split: str = "train", revision: str | None = None
    ) -> None:
        if path == "???":
            raise CatalignError("the dataset's name is not given", "name it: data.source.path=OWNER/NAME")
        self.path, self.subset, self.split, self.revision = path, subset, split, revision
        self._stream: Any = None

    def _error(self, error: Exception) -> CatalignError:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        return CatalignError(
            f"the Hugging Face dataset {self.path!r} (split {self.split!r}) cannot be read: {reason}",
            "check its name and the network, then run again; or give a local copy with data.root=FOLDER "
            "(environment variable CATALIGN_DATA=FOLDER) or data=table data.source.path=FILE",
        )

    def _open(self) -> Any:
        if self._stream is None:
            import datasets

            try:
                stream = datasets.load_dataset(
                    self.path, self.subset, split=self.split, revision=self.revision, streaming=True
                )
                for name, feature in (stream.features or {}).items():
                    if isinstance(feature, datasets.Image):
                        stream = stream.cast_column(name, datasets.Image(decode=False))
            except Exception as error:  # offline, absent, gated, no such split: the library raises a dozen types
                raise self._error(error) from None
            self._stream = stream
            known = (stream.info.splits or {}).get(self.split)
            self.rows = known.num_examples if known is not None else None
        return self._stream

    def columns(self) -> list[str]:
        """The dataset's features."""
        stream = self._open()
        return list(stream.features or next(iter(stream), {}))

    def fingerprint(self) -> str:
        """The commit, of which the hub keeps the content; for a local folder as :func:`folder_fingerprint`."""
        if Path(self.path).is_dir():
            return digest([folder_fingerprint(Path(self.path)), self.subset, self.split], 64)
        revision = self.revision
        if revision is None:
            from huggingface_hub import HfApi

            try:
                revision = HfApi().dataset_info(self.path).sha
            except Exception as error:  # as above
                raise self._error(error) from None
        return digest([self.path, self.subset, self.split, revision], 64)

    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Rows as they arrive, photos still encoded."""
        stream = self._open().select_columns(list(columns))
        try:
            for rows in stream.iter(batch_size=size):
                yield {column: list(rows[column]) for column in columns}
        except Exception as error:  # the connection may break at any row; what was prepared is kept
            raise self._error(error) from None
