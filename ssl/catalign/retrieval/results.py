"""What a search found: a list of hits that shows itself as a table in a terminal and as pictures in a notebook."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import overload

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

_CARD = "margin:4px;width:120px;font:12px sans-serif"
_GRID = "display:flex;flex-wrap:wrap"


@dataclass(frozen=True)
class Hit:
    """A product that was found.

    Attributes:
        id: The product's id.
        score: Inner product with the query; the cosine similarity, for vectors of length 1.
        title: Its primary text.
        attributes: Its attributes, without missing ones.
        row: Its row in the catalogue; None for a product that is in the index only.
        photo: Its photo as JPEG bytes, or None.
    """

    id: str
    score: float
    title: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    row: int | None = None
    photo: bytes | None = field(default=None, repr=False)


class Results(Sequence[Hit]):
    """Hits, best first.

    Args:
        hits: What was found.
        query: The query in words, for the heading.
    """

    def __init__(self, hits: Sequence[Hit], query: str) -> None:
        self.hits, self.query = list(hits), query

    @property
    def ids(self) -> list[str]:
        """The products' ids, best first."""
        return [hit.id for hit in self.hits]

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> Results: ...
    def __getitem__(self, place: int | slice) -> Hit | Results:
        return Results(self.hits[place], self.query) if isinstance(place, slice) else self.hits[place]

    def __rich__(self) -> Table | str:
        if not self.hits:
            return f"{self.query}: no product matches"
        table = Table(title=escape_markup(self.query), title_justify="left")
        table.add_column("#", justify="right")
        for heading in ("score", "id", "title", "attributes"):
            table.add_column(heading, justify="right" if heading == "score" else "left", overflow="fold")
        for place, hit in enumerate(self.hits, 1):
            attributes = ", ".join(hit.attributes.values())
            cells = (hit.id, hit.title, attributes)
            table.add_row(str(place), f"{hit.score:.3f}", *map(escape_markup, cells))
        return table

    def __repr__(self) -> str:
        console = Console(width=120, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.__rich__())
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        heading = f'<p style="font:13px sans-serif"><b>{escape(self.query)}</b></p>'
        if not self.hits:
            return f"{heading}<p>no product matches</p>"
        return f'{heading}<div style="{_GRID}">{"".join(map(_card, self.hits))}</div>'


def _card(hit: Hit) -> str:
    tip = escape(", ".join(f"{name}: {value}" for name, value in hit.attributes.items()))
    picture = '<div style="height:120px;background:#eee;text-align:center;line-height:120px">no photo</div>'
    if hit.photo is not None:
        source = base64.b64encode(hit.photo).decode()
        picture = f'<img alt="" src="data:image/jpeg;base64,{source}" style="height:120px">'
    label = f"<b>{hit.score:.3f}</b> {escape(hit.title or hit.id)}"
    return f'<figure title="{tip}" style="{_CARD}">{picture}<figcaption>{label}</figcaption></figure>'
