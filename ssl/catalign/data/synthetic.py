"""The synthetic catalogue: products whose photos, texts and buyers all show the same attributes.

It is for the quickstart and for tests, where every fact is known and nothing is downloaded. Its products are far
easier to tell apart than real ones: **a number measured on it is never a headline**.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from catalign.artifacts import digest
from catalign.data.interactions import Histories
from catalign.data.sources import Chunk, Source
from catalign.data.synthetic_images import COLOURS, PATTERNS, draw
from catalign.data.synthetic_texts import description, title
from catalign.errors import CatalignError, unknown
from catalign.registry import register

VERSION = 2
"""Part of the fingerprint: raise it when the same options would give other products or histories."""

_MATERIALS = {
    "t-shirt": ["cotton", "cotton", "silk", "wool"],
    "jacket": ["denim", "leather", "nylon", "wool"],
    "dress": ["cotton", "silk", "denim"],
    "skirt": ["cotton", "denim", "leather", "silk"],
    "trousers": ["cotton", "denim", "wool", "leather"],
    "sneakers": ["canvas", "leather", "suede"],
    "boots": ["leather", "leather", "suede"],
    "handbag": ["leather", "canvas", "suede"],
    "backpack": ["canvas", "nylon", "leather"],
    "watch": ["leather", "metal", "nylon"],
    "cap": ["cotton", "wool", "denim"],
    "sunglasses": ["plastic", "metal"],
}
DEPARTMENTS = {
    "clothing": ["t-shirt", "jacket", "dress", "skirt", "trousers"],
    "footwear": ["sneakers", "boots"],
    "accessories": ["handbag", "backpack", "watch", "cap", "sunglasses"],
}
_DEPARTMENT_OF = {category: department for department, some in DEPARTMENTS.items() for category in some}
_CATEGORY_WEIGHTS = dict(zip(_MATERIALS, (14, 9, 9, 6, 10, 11, 7, 8, 6, 7, 6, 7), strict=True))
_COLOUR_WEIGHTS = dict(zip(COLOURS, (16, 11, 9, 10, 5, 6, 8, 5, 13, 5, 7, 7), strict=True))
_PATTERN_WEIGHTS = dict(zip(PATTERNS, (45, 22, 15, 18), strict=True))
_SEASON_WEIGHTS = {
    "warm": {"spring": 4, "summer": 5, "autumn": 2, "winter": 1},
    "cold": {"spring": 1, "summer": 1, "autumn": 4, "winter": 5},
    "any": {"spring": 1, "summer": 1, "autumn": 1, "winter": 1},
}
_CLIMATE = {"wool": "cold", "nylon": "cold", "boots": "cold", "silk": "warm", "sunglasses": "warm", "sneakers": "warm"}
BRANDS = {
    brand: dict(zip(DEPARTMENTS, weights, strict=True))
    for brand, weights in {
        "Albero": (8, 2, 1), "Borea": (6, 4, 2), "Cindra": (4, 1, 5), "Dunefolk": (2, 6, 2),
        "Estrel": (1, 1, 6), "Fjordal": (3, 3, 1), "Granito": (1, 3, 2), "Halcyra": (2, 1, 3),
    }.items()
}  # fmt: skip
"""Made-up brands and how often each is met in a department."""

_NEXT = {
    "t-shirt": "trousers", "trousers": "sneakers", "sneakers": "cap", "cap": "backpack", "backpack": "t-shirt",
    "dress": "handbag", "handbag": "sunglasses", "sunglasses": "dress", "skirt": "boots", "boots": "jacket",
    "jacket": "watch", "watch": "skirt",
}  # fmt: skip
"""What is often bought after what: three rounds."""

_PRODUCT, _TITLE, _DESCRIPTION, _PHOTO, _USER, _DEMAND = range(6)  # independent random streams of a row
_VARIANTS = 0.15  # share of rows that are another photo of an earlier product under the same title


class Product(NamedTuple):
    """What there is to know of one product. Rows with the same ``root`` are the same product."""

    root: int
    department: str
    category: str
    colour: str
    pattern: str
    material: str
    brand: str
    season: str

    @property
    def brand_number(self) -> int:
        """The brand's place among all."""
        return list(BRANDS).index(self.brand)


@register("source", "synthetic")
class Synthetic(Source):
    """A catalogue drawn from its seed, for the quickstart and tests; never for a headline.

    Every row is a pure function of (seed, row): a catalogue is a prefix of any larger one of the same seed. About 15%
    of the rows are another photo, under the same title, of one of the 40 products before them. Histories follow latent
    tastes (some categories, colours and brands, drifting) and buying rounds such as t-shirt, trousers, sneakers.

    Columns: ``id, image, title, description, department, category, colour, pattern, material, brand, season, group``.

    Args:
        products: Number of rows.
        users: Number of users with a history; 0 for none.
        seed: Seed of everything.
        image_size: Height and width of the photos in pixels.
        missing: Share of rows without a photo, and of rows without a description.

    Raises:
        CatalignError: A number is out of range.
    """

    def __init__(
        self,
        *,
        products: int = 2000,
        users: int = 500,
        seed: int = 0,
        image_size: tuple[int, int] = (64, 64),
        missing: float = 0.0,
    ) -> None:
        if products < 1 or users < 0 or seed < 0 or min(image_size) < 8 or not 0 <= missing <= 1:
            given = f"products={products}, users={users}, seed={seed}, image_size={image_size}, missing={missing}"
            raise CatalignError(f"synthetic source: {given}", "needs products >= 1, sizes >= 8, 0 <= missing <= 1")
        self.rows, self.users, self.seed = products, users, seed
        self.image_size, self.missing = image_size, missing

    def columns(self) -> list[str]:
        """The columns there are."""
        return ["id", "image", "title", "description", *Product._fields[1:], "group"]

    def fingerprint(self) -> str:
        """A hash of the options."""
        return digest([VERSION, self.rows, self.users, self.seed, self.image_size, self.missing], 64)

    def chunks(self, size: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Some columns of all rows, ``size`` rows at a time; photos are arrays.

        Raises:
            CatalignError: A column does not exist.
        """
        for column in columns:
            if column not in self.columns():
                raise unknown("column of the synthetic source", column, self.columns())
        for start in range(0, self.rows or 0, size):
            rows = [self.row(row, columns) for row in range(start, min(start + size, self.rows or 0))]
            yield {column: [row[column] for row in rows] for column in columns}

    def row(self, row: int, columns: Sequence[str]) -> dict[str, str | np.ndarray | None]:
        """Some columns of one row, made from nothing but the seed and the row number."""
        product = self.product(row)
        return {column: self._cell(row, product, column) for column in columns}

    def _cell(self, row: int, product: Product, column: str) -> str | np.ndarray | None:
        if column == "id":
            return f"S{row:06d}"
        if column == "group":
            return f"S{product.root:06d}"
        if column == "title":
            return title(product, self._rng(product.root, _TITLE))  # variants share their product's title
        if column == "description":
            rng = self._rng(row, _DESCRIPTION)
            return "" if rng.random() < self.missing else description(product, rng)
        if column == "image":
            rng = self._rng(row, _PHOTO)
            return None if rng.random() < self.missing else draw(product, rng, self.image_size)
        return str(getattr(product, column))

    def product(self, row: int) -> Product:
        """The product a row shows."""
        uniform = self._rng(row, _PRODUCT).random(9)
        if row and uniform[0] < _VARIANTS:
            return self.product(row - 1 - int(uniform[1] * min(row, 40)))
        category = _pick(_CATEGORY_WEIGHTS, uniform[2])
        material = _MATERIALS[category][int(uniform[3] * len(_MATERIALS[category]))]
        department = _DEPARTMENT_OF[category]
        climate = _CLIMATE.get(material) or _CLIMATE.get(category, "any")
        return Product(
            root=row,
            department=department,
            category=category,
            colour=_pick(_COLOUR_WEIGHTS, uniform[4]),
            pattern=_pick(_PATTERN_WEIGHTS, uniform[5]),
            material=material,
            brand=_pick({brand: weights[department] for brand, weights in BRANDS.items()}, uniform[6]),
            season=_pick(_SEASON_WEIGHTS[climate], uniform[7]),
        )

    def histories(self) -> Histories | None:
        """What each user bought, oldest first, as row numbers: 5 to 30 products, none twice."""
        if not self.users:
            return None
        market = _Market([self.product(row) for row in range(self.rows or 0)], self._rng(0, _DEMAND))
        return Histories.of((f"U{user:06d}", market.visit(self._rng(user, _USER))) for user in range(self.users))

    def _rng(self, row: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, row, stream))


def _pick(weights: Mapping[str, float], uniform: float) -> str:
    """The name at a uniform number's place when names are laid out by weight."""
    heaps = list(accumulate(weights.values()))
    return next(name for name, heap in zip(weights, heaps, strict=True) if uniform * heaps[-1] < heap)


class _Market:
    """All products by category with their popularity, and users who choose among them."""

    def __init__(self, products: list[Product], rng: np.random.Generator) -> None:
        popularity = np.exp(rng.normal(0, 1, len(products)))  # a long tail
        self.colour = np.array([list(COLOURS).index(product.colour) for product in products])
        self.brand = np.array([product.brand_number for product in products])
        category = np.array([product.category for product in products])
        shelves = {name: np.flatnonzero(category == name) for name in _MATERIALS}
        self.shelves = {name: rows for name, rows in shelves.items() if len(rows)}
        self.heaps = {name: np.cumsum(popularity[rows]) for name, rows in self.shelves.items()}

    def visit(self, rng: np.random.Generator) -> list[int]:
        """One user's purchases in order."""
        liked = dict(zip(self.shelves, rng.dirichlet(np.full(len(self.shelves), 0.4)), strict=True))
        colours, brands = rng.normal(0, 1.5, len(COLOURS)), rng.normal(0, 1.5, len(BRANDS))
        bought: dict[int, None] = {}
        category = _pick(liked, rng.random())
        for _ in range(min(5 + int(rng.exponential(5)), 30)):
            colours += rng.normal(0, 0.25, len(COLOURS))  # tastes drift
            following = _NEXT[category]
            go_on = rng.random() < 0.7 and following in self.shelves
            category = following if go_on else _pick(liked, rng.random())
            heaps = self.heaps[category]
            seen = self.shelves[category][np.searchsorted(heaps, rng.random(30) * heaps[-1], side="right")]
            fresh = [int(row) for row in seen if int(row) not in bought]
            if fresh:
                appeal = np.exp(colours[self.colour[fresh]] + brands[self.brand[fresh]])
                bought[fresh[int(rng.choice(len(fresh), p=appeal / appeal.sum()))]] = None
        return list(bought)
