"""Listings spoilt on purpose: another product's photo, title or category, or a title of strange words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catalign.data.catalogue import Catalogue

KINDS = ("photo", "photo_hard", "title", "title_hard", "category", "category_hard", "words")


@dataclass
class Listings:
    """What is shown of m products.

    Attributes:
        titles: m titles.
        title_rows: (m,) catalogue rows whose titles they are; -1 for a title that no product has.
        photo_rows: (m,) catalogue rows whose photos they are.
        categories: (m,) texts.
    """

    titles: list[str]
    title_rows: np.ndarray
    photo_rows: np.ndarray
    categories: np.ndarray

    def __add__(self, other: Listings) -> Listings:
        """Both, one after the other."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("title_rows", "photo_rows", "categories"))
        return Listings(self.titles + other.titles, *(np.concatenate(pair) for pair in pairs))


@dataclass
class Spoilt:
    """Some spoilt listings: (m,) positions among the sound ones, and what they show now."""

    positions: np.ndarray
    listings: Listings


class Swaps:
    """Sound listings of some products, and spoilt ones drawn from a seed.

    Args:
        catalogue: The products.
        rows: (n,) catalogue rows with a title, a photo and a category.
        category: The attribute of categories.
        parent: An attribute that joins like categories; None for no hard swaps of categories.
    """

    def __init__(self, catalogue: Catalogue, rows: np.ndarray, category: str, parent: str | None) -> None:
        self.rows, self.groups = rows, np.asarray(catalogue.groups)[rows]
        column = catalogue.text(next(iter(catalogue.fields)))
        self.categories = catalogue.attributes[category].astype(str)[rows]
        self.parents = catalogue.attributes[parent].astype(str)[rows] if parent else None
        self.sound = Listings([column[int(row)] for row in rows], rows, rows, self.categories)
        self.words = [word for title in self.sound.titles for word in title.split()]

    @property
    def kinds(self) -> list[str]:
        """The kinds that can be drawn."""
        return [kind for kind in KINDS if kind != "category_hard" or self.parents is not None]

    def draw(self, kind: str, share: float, seed: int) -> Spoilt:
        """Spoil a share of the listings.

        Photos, titles and categories are those of another product, never of the same group: of another category, or,
        if hard, of the same one (for ``category_hard``: of another category with the same parent). For ``words``, every
        second word of the title is replaced by a word of any title. A listing without such a partner stays sound.
        """
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        order, wanted = rng.permutation(len(self.rows)), round(share * len(self.rows))
        positions: list[int] = []
        partners: list[int] = []
        titles: list[str] = []
        for position in order:
            if len(positions) == wanted:
                break
            if kind == "words":
                words = self.sound.titles[position].split()
                words[1::2] = [self.words[place] for place in rng.integers(len(self.words), size=len(words[1::2]))]
                title, candidates = " ".join(words), np.array([position] if len(words) > 1 else [], dtype=np.int64)
            else:
                candidates = np.flatnonzero(self._partners(kind, position))
                title = ""
            if len(candidates):
                positions.append(position)
                partners.append(rng.choice(candidates))
                titles.append(title)
        places, others = (np.array(some, dtype=np.int64) for some in (positions, partners))
        return Spoilt(places, self._spoilt(kind, places, others, titles))

    def _partners(self, kind: str, position: int) -> np.ndarray:
        same = self.categories == self.categories[position]
        if kind == "category_hard":
            assert self.parents is not None
            fits = ~same & (self.parents == self.parents[position])
        else:
            fits = same if kind.endswith("_hard") else ~same
        return fits & (self.groups != self.groups[position])

    def _spoilt(self, kind: str, positions: np.ndarray, partners: np.ndarray, titles: list[str]) -> Listings:
        what = kind.removesuffix("_hard")
        title_of = partners if what == "title" else positions
        return Listings(
            titles if what == "words" else [self.sound.titles[place] for place in title_of],
            np.full(len(positions), -1) if what == "words" else self.rows[title_of],
            self.rows[partners if what == "photo" else positions],
            self.categories[partners if what == "category" else positions],
        )
