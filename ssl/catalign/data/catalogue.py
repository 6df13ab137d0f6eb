"""The prepared catalogue: what every stage, index and protocol reads products from."""

from __future__ import annotations

import base64
import difflib
import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from catalign.artifacts import unseal
from catalign.config import DataConfig
from catalign.data import images, interactions, logs, quarantine, splits
from catalign.data.assemble import check_log
from catalign.data.interactions import Histories
from catalign.data.prepare import columns_of, prepare
from catalign.data.quarantine import BadRow
from catalign.data.text import Ragged, Vocabulary
from catalign.errors import CatalignError, unknown

_REMEDY = "delete the folder and prepare it again: catalign data"


class Texts(Sequence[str]):
    """One text column, read from disk when asked for.

    Args:
        column: N strings.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._column[int(index) % len(self)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of some rows."""
        return self._column.take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()


class Catalogue:
    """Products in a fixed order, memory-mapped from a prepared folder.

    Example:
        >>> from catalign.config import compose
        >>> Catalogue.load(compose(["data=table", "data.source.path=shop.csv"]).data)  # doctest: +SKIP

    Attributes:
        path: The folder.
        name: The catalogue's name.
        fingerprint: Hash of its content and of how it was prepared.
        manifest: What the preparation wrote down.
        fields: Text columns and their sampling weights; the first is the primary one.
        ids: N product ids.
        images: (N, H, W, 3) uint8; all zero where there is no photo (see ``has_image``).
        has_image: (N,) bool.
        has_text: (N,) bool, whether the primary text has any token.
        tokens: Per field, token ids without special ones, cut at ``max_tokens``.
        max_tokens: Tokens kept of one text, specials not counted.
        groups: (N,) int64; the same number is the same product.
        splits: (N,) text: train, val or test.
        vocabulary: The tokenizer and what is known of its tokens.
        histories: What users bought or viewed, or None.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.name: str = manifest["name"]
        self.fingerprint: str = manifest["fingerprint"]
        self.fields: dict[str, float] = dict(manifest["config"]["columns"]["text"])
        self.max_tokens: int = manifest["config"]["max_tokens"]
        self._table = pa.ipc.open_file(pa.memory_map(str(path / "table.arrow"))).read_all()
        self.ids: list[str] = self._table["id"].to_pylist()
        self.images: np.ndarray = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        self.has_image: np.ndarray = self._array("has_image")
        self.groups: np.ndarray = self._array("groups")
        self.splits: np.ndarray = self._array("splits")
        self.tokens = {field: Ragged.load(path, f"tokens{place}") for place, field in enumerate(self.fields)}
        self.has_text: np.ndarray = next(iter(self.tokens.values())).lengths > 0
        self.vocabulary = Vocabulary.load(path)
        self.histories: Histories | None = Histories.load(path) if manifest["histories"] else None

    def _array(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Catalogue:
        """Open a prepared folder.

        Args:
            path: The folder.
            verify: Also compare every file with its checksum (reads all photos); sizes are always compared.

        Raises:
            CatalignError: The folder is absent, unfinished or altered.
        """
        return cls(Path(path), unseal(path, "catalogue", _REMEDY, verify=verify))

    @classmethod
    def load(cls, config: DataConfig, progress: bool = True) -> Catalogue:
        """Open the catalogue a config describes; prepare it first if that was not done yet.

        Raises:
            CatalignError: As :func:`catalign.data.prepare.prepare` and :meth:`open`.
        """
        catalogue = cls.open(prepare(config, progress))
        report = catalogue.path / quarantine.REPORT
        bad = catalogue.quarantine if catalogue.manifest["bad_rows"] else []
        # The limit changes nothing that is prepared, so it is the config's, not the cache's.
        quarantine.check_share(config.name, bad, catalogue.manifest["source_rows"], config.max_bad_share, report)
        if log := catalogue.manifest.get("log"):
            bad = quarantine.read(catalogue.path / logs.REPORT) if log["bad_rows"] else []
            check_log(config, bad, log["rows"], catalogue.path)
        return catalogue.weighted(config)

    def weighted(self, config: DataConfig) -> Catalogue:
        """This catalogue with the config's sampling weights of text columns, which no preparation depends on."""
        self.fields = dict(columns_of(config).text)
        return self

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CatalignError: One was altered.
        """
        unseal(self.path, "catalogue", _REMEDY, verify=True)

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, field: str | None = None) -> Texts:
        """N texts of one field ("" where absent), the primary one by default, cleaned of markup.

        Raises:
            CatalignError: There is no such field.
        """
        field = next(iter(self.fields)) if field is None else field
        if field not in self.fields:
            raise unknown("text field", field, self.fields)
        return Texts(self._table[f"text:{field}"])

    @cached_property
    def attributes(self) -> dict[str, np.ndarray]:
        """Per attribute (N,) texts, "" where missing."""
        names = self.manifest["config"]["columns"]["attributes"]
        return {name: self._table[f"attribute:{name}"].to_numpy() for name in names}

    @cached_property
    def quarantine(self) -> list[BadRow]:
        """The rows left out, with their reasons."""
        return quarantine.read(self.path / quarantine.REPORT)

    def rows(self, *names: str, share: float = 1.0, without: Mapping[str, Sequence[str]] | None = None) -> np.ndarray:
        """Row numbers of some splits, all rows without a name.

        Args:
            names: The splits.
            share: Share of their groups, drawn once and for all: a smaller share lies within a larger one.
            without: Values by attribute: products that have one of them are left out.

        Raises:
            CatalignError: A split, an attribute or a value does not exist, or the splits are all empty.
        """
        for name in names:
            if name not in splits.SPLITS:
                raise unknown("split", name, splits.SPLITS)
        rows = np.flatnonzero(np.isin(self.splits, names)) if names else np.arange(len(self))
        if not len(rows):
            known = ", ".join(f"{name} {count}" for name, count in Counter(self.splits.tolist()).items())
            raise CatalignError(
                f"split {' + '.join(names)} of catalogue {self.name!r} is empty (there are: {known})",
                "name another split, or draw one with data.split.val=0.05 data.split.test=0.1 data.columns.split=null",
            )
        for attribute, values in (without or {}).items():
            rows = rows[~self.having(attribute, values)[rows]]
        if share == 1:
            return rows
        lots = np.random.default_rng(0).random(int(self.groups.max()) + 1)
        return rows[lots[self.groups[rows]] < share]

    def having(self, attribute: str, values: Sequence[str]) -> np.ndarray:
        """(N,) bool: which products have one of these values of an attribute.

        Raises:
            CatalignError: No product has such an attribute or value.
        """
        if attribute not in self.attributes:
            raise unknown("attribute", attribute, self.attributes)
        column = self.attributes[attribute]
        known = set(column.tolist()) - {""}
        for value in values:
            if value not in known:
                raise unknown(f"value of {attribute}", value, known)
        return np.isin(column.astype(str), values)

    def __contains__(self, id: object) -> bool:
        return str(id) in self._row_of

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {identity: row for row, identity in enumerate(self.ids)}

    def row(self, id: str) -> int:
        """The row of a product id.

        Raises:
            CatalignError: No product has it; names the nearest one.
        """
        found = self._row_of.get(str(id))
        if found is None:
            raise CatalignError(f"catalogue {self.name!r} has no product {id!r}", self._hint(str(id)))
        return found

    def _hint(self, id: str) -> str | None:
        for row in self.quarantine:
            if row.id == id:
                return f"it was left out, {row.column}: {row.reason}"
        near = difflib.get_close_matches(id, self.ids[:50_000], n=1, cutoff=0.5)  # a second at most
        return f"did you mean {near[0]!r}?" if near else None

    def describe(self) -> dict[str, Any]:
        """Numbers of products, splits, groups, duplicates, missing values and bad rows."""
        sizes = np.bincount(self.groups)
        return {
            "products": len(self),
            "splits": {name: int((self.splits == name).sum()) for name in splits.SPLITS},
            "groups": int((sizes > 0).sum()),
            "duplicates": int(sizes[sizes > 1].sum()),
            "divided_groups": self.manifest["divided_groups"],
            "missing": {
                "image": int((~self.has_image).sum()),
                **{field: sum(text == "" for text in self.text(field)) for field in self.fields},
                **{name: int((values == "").sum()) for name, values in self.attributes.items()},
            },
            "quarantine": {"rows": self.manifest["bad_rows"], **self.manifest["bad_kinds"]},
            "behaviour": self.histories.describe() if self.histories is not None else None,
            "log": self.manifest.get("log"),
            "vocabulary": self.vocabulary.size,
            "image_size": list(self.images.shape[1:3]),
        }

    def thumbnail(self, row: int) -> bytes:
        """A product's photo as JPEG; a grey one where it has none."""
        photo = np.asarray(self.images[row])
        return images.encode(photo if self.has_image[row] else np.full_like(photo, 224))

    def __repr__(self) -> str:
        facts = self.describe()
        bad = facts["quarantine"]["rows"]
        lines = {
            "products": f"{facts['products']:,} in {facts['groups']:,} groups",
            "splits": ", ".join(f"{name} {count:,}" for name, count in facts["splits"].items()),
            "photos": f"{int(self.has_image.sum()):,} of {facts['image_size'][0]} x {facts['image_size'][1]} px",
            "texts": ", ".join(f"{field} ({weight:g})" for field, weight in self.fields.items()),
            "attributes": ", ".join(self.attributes) or "none",
            "vocabulary": f"{facts['vocabulary']:,} tokens",
            "quarantine": f"{bad:,} rows, see {self.path / quarantine.REPORT}" if bad else "no bad rows",
        }
        if facts["behaviour"] is not None:
            lines["behaviour"] = interactions.in_words(facts["behaviour"])
        if facts["log"] is not None:
            lines["log"] = logs.in_words(facts["log"])
        return "\n".join([f"Catalogue {self.name}", *(f"  {key:<11} {value}" for key, value in lines.items())])

    def _repr_html_(self, count: int = 8) -> str:
        cards = []
        for row in range(min(count, len(self))):
            source = base64.b64encode(self.thumbnail(row)).decode()
            title = html.escape(self.text()[row] or self.ids[row])
            cards.append(
                f'<figure style="margin:4px;width:110px"><img alt="" src="data:image/jpeg;base64,{source}" '
                f'style="width:100%"><figcaption style="font-size:11px">{title}</figcaption></figure>'
            )
        gallery = f'<div style="display:flex;flex-wrap:wrap">{"".join(cards)}</div>'
        return f"<pre>{html.escape(repr(self))}</pre>{gallery}"
