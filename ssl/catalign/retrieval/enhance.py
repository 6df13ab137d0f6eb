"""Values for missing attributes of products, each with the products of a run's catalogue that support it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from catalign.artifacts import atomic
from catalign.data.incoming import Incoming
from catalign.embeddings.fusion import fuse_store
from catalign.errors import CatalignError, unknown
from catalign.retrieval.neighbours import nearest, threshold_at, votes
from catalign.retrieval.retriever import Retriever

SUPPORT = 3
"""Products named for each proposal."""
COLUMNS = ["row", "id", "title", "attribute", "proposed", "confidence", *(f"support_{n + 1}" for n in range(SUPPORT))]


@dataclass
class Support:
    """An attribute's labelled products.

    Attributes:
        rows: (N,) their catalogue rows.
        labels: (N,) their class numbers.
        classes: C values.
        threshold: Confidence from which a value is proposed.
    """

    rows: np.ndarray
    labels: np.ndarray
    classes: list[str]
    threshold: float = 0.0


class Enhancer:
    """Proposes attribute values by the votes of the 20 nearest labelled products of a run's catalogue.

    A value is proposed from the confidence on (its share of the votes) that had the wished precision on the catalogue's
    val products, when train products voted for them.

    Args:
        retriever: The run's catalogue, embeddings, fusion and model.
        attributes: Attributes to propose; all by default.
        precision: Wished share of right proposals; 0 proposes a value wherever one is missing.

    Raises:
        CatalignError: An attribute that does not exist or that no product has, or a precision that is no share.
    """

    def __init__(self, retriever: Retriever, attributes: list[str] | None = None, precision: float = 0.95) -> None:
        if not 0 <= precision <= 1:
            raise CatalignError(f"precision {precision} is no share", "give one from 0 to 1, such as 0.95")
        self.retriever, catalogue = retriever, retriever.catalogue
        self.vectors, known = fuse_store(retriever.fusion, retriever.store)
        self.supports: dict[str, Support] = {}
        for name in attributes or list(catalogue.attributes):
            if name not in catalogue.attributes:
                raise unknown("attribute to propose", name, catalogue.attributes)
            values = catalogue.attributes[name].astype(str)
            rows = np.flatnonzero(known & (values != ""))
            if not len(rows):
                raise CatalignError(f"no product of {catalogue.name!r} has the attribute {name!r}")
            classes, labels = np.unique(values[rows], return_inverse=True)
            self.supports[name] = Support(rows, labels, classes.tolist())
            if precision:
                self.supports[name].threshold = self._threshold(self.supports[name], precision)

    def _threshold(self, support: Support, precision: float) -> float:
        splits = self.retriever.catalogue.splits[support.rows]
        train, val = splits == "train", splits == "val"
        if not train.any() or not val.any():
            return float("inf")
        distances, rows = nearest(self.vectors[support.rows[train]], self.vectors[support.rows[val]])
        shares = votes(distances, support.labels[train][rows], len(support.classes))
        return threshold_at(shares.max(1), shares.argmax(1) == support.labels[val], precision)

    def __call__(self, products: Incoming) -> pd.DataFrame:
        """A line per product and attribute that it lacks.

        Columns: ``row`` (in the table, from 0), ``id``, ``title``, ``attribute``, ``proposed``, ``confidence`` (0 to 1)
        and ``support_1`` to ``support_3``, the ids of the nearest products that have the value. ``proposed`` and what
        follows are empty below the threshold.
        """
        frames = [frame for table, photos in products for frame in self._proposals(products, table, photos)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)

    def summary(self, proposals: pd.DataFrame) -> Table:
        """For the terminal: how many values were missing and proposed, and from which confidence on."""
        table = Table()
        for heading in ("attribute", "missing", "proposed", "from confidence"):
            table.add_column(heading, justify="left" if heading == "attribute" else "right")
        for name, support in self.supports.items():
            lines = proposals[proposals["attribute"] == name]
            threshold = f"{support.threshold:.2f}" if np.isfinite(support.threshold) else "never that precise"
            table.add_row(escape(name), str(len(lines)), str(int((lines["proposed"] != "").sum())), threshold)
        return table

    def _proposals(self, products: Incoming, table: pa.Table, photos: np.ndarray) -> Iterator[pd.DataFrame]:
        titles = table[f"text:{products.field}"].to_pylist()
        vectors, some = self._embed(titles, photos, table["has_image"].to_numpy())
        for name, support in self.supports.items():
            values = table[f"attribute:{name}"].to_pylist() if name in products.attributes else [""] * len(table)
            places = np.flatnonzero([not value for value in values])
            if len(places):
                lines = table.select(["row", "id"]).take(pa.array(places)).to_pandas()
                lines["title"], lines["attribute"] = [titles[place] for place in places], name
                yield lines.assign(**self._propose(support, vectors[places], some[places]))

    def _embed(self, titles: list[str], photos: np.ndarray, has_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fused vectors (n, D) of products and which of them have one (n,)."""
        embedder, fusion = self.retriever.embedder, self.retriever.fusion
        present = {"text": embedder.knows(titles), "image": has_image}
        made = {
            "text": lambda: embedder.text([title for title, has in zip(titles, present["text"], strict=True) if has]),
            "image": lambda: embedder.images(list(photos)),
        }
        vectors = {}
        for name in set(made) & set(fusion.names):
            vectors[name] = np.zeros((len(titles), fusion.widths[fusion.names.index(name)]), dtype=np.float32)
            if present[name].any():
                vectors[name][present[name]] = made[name]()
        return fusion(vectors, {n: present[n] for n in vectors}), np.any([present[n] for n in vectors], axis=0)

    def _propose(self, support: Support, vectors: np.ndarray, some: np.ndarray) -> dict[str, list[object]]:
        """Columns of the proposals for products (n, D), ``some`` (n,) of which have a vector."""
        distances, found = nearest(self.vectors[support.rows], vectors)
        labels = support.labels[found]
        shares = votes(distances, labels, len(support.classes))
        columns: dict[str, list[object]] = {name: [] for name in COLUMNS[4:]}
        for row, label in enumerate(shares.argmax(1)):
            confidence = float(shares[row, label])
            accepted = bool(some[row]) and confidence >= support.threshold
            supporting = support.rows[found[row][labels[row] == label]] if accepted else []
            ids = [*(self.retriever.catalogue.ids[other] for other in supporting[:SUPPORT]), *[""] * SUPPORT]
            cells = [support.classes[label], round(confidence, 4)] if accepted else ["", None]
            for name, cell in zip(columns, [*cells, *ids[:SUPPORT]], strict=True):
                columns[name].append(cell)
        return columns


WRITERS = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".jsonl": lambda table, path: table.to_json(path, orient="records", lines=True, force_ascii=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}


def check_output(path: Path) -> None:
    """Check that a table's name has an ending that can be written.

    Raises:
        CatalignError: It has not.
    """
    if path.suffix.lower() not in WRITERS:
        raise unknown("kind of table to write", path.name, (f"*{suffix}" for suffix in WRITERS))


def write(proposals: pd.DataFrame, path: Path) -> None:
    """Write proposals in the form that the file's name says, all or nothing."""
    with atomic(path) as temporary:
        WRITERS[path.suffix.lower()](proposals, temporary)
