"""Drawn product photos: a silhouette per category, filled with colour, pattern and material, marked by brand."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from catalign.data.synthetic_shapes import BASE, LINE, NOTHING, SECOND, SILHOUETTES, TRIM, label

if TYPE_CHECKING:
    from catalign.data.synthetic import Product

COLOURS = {
    "black": (38, 38, 42),
    "white": (244, 243, 238),
    "grey": (138, 140, 144),
    "red": (205, 32, 44),
    "orange": (240, 125, 30),
    "yellow": (245, 208, 50),
    "green": (46, 140, 70),
    "turquoise": (60, 190, 190),
    "blue": (38, 84, 190),
    "purple": (122, 58, 160),
    "pink": (244, 146, 180),
    "brown": (120, 74, 44),
}
"""RGB of every colour; each product's own differs a little."""

_FINE = 2  # canvas pixels per photo pixel and axis: their average smooths the edges
_BACKGROUNDS = {
    "spring": (222, 234, 214),
    "summer": (243, 234, 206),
    "autumn": (233, 216, 200),
    "winter": (212, 222, 236),
}
_BRANDS = [
    (200, 30, 40),
    (20, 90, 200),
    (20, 130, 60),
    (230, 120, 0),
    (110, 40, 150),
    (20, 20, 20),
    (0, 150, 160),
    (160, 100, 20),
]


def _from_dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Squared distance to the middle of the unit cell."""
    return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2


Waves = Callable[[np.ndarray, np.ndarray], np.ndarray]
PATTERNS: dict[str, Waves] = {
    "plain": lambda u, v: np.zeros(u.shape, dtype=bool),
    "striped": lambda u, v: (v * 3.2) % 1 < 0.42,
    "dotted": lambda u, v: _from_dot(3.2 * u + 0.5 * (np.floor(3.2 * v) % 2), 3.2 * v) < 0.085,
    "checked": lambda u, v: ((u * 2.6) % 1 < 0.5) ^ ((v * 2.6) % 1 < 0.5),
}
"""Per pattern whether a point of the product has its second colour."""

MATERIALS: dict[str, Waves] = {
    "cotton": lambda u, v: 0.02 * np.sin(9 * u + 4 * v),
    "denim": lambda u, v: 0.16 * np.sign(np.sin(44 * (u + v))),
    "wool": lambda u, v: 0.17 * np.sin(34 * v + 5 * np.abs(np.sin(13 * u))),
    "leather": lambda u, v: 0.6 * np.exp(-(((u + 0.35 * v + 0.22) / 0.13) ** 2)) - 0.12 * u,
    "silk": lambda u, v: 0.2 * np.sin(9 * u + 3 * v + 1.5 * np.sin(2.5 * v)),
    "canvas": lambda u, v: 0.15 * np.sin(38 * u) * np.sin(38 * v),
    "nylon": lambda u, v: 0.34 * np.abs(np.sin(6.5 * v)) - 0.2,
    "suede": lambda u, v: 0.09 * np.sin(23 * u + 9 * np.sin(11 * v)) * np.sin(19 * v + 8 * np.sin(13 * u)),
    "metal": lambda u, v: 0.3 * np.sign(np.sin(24 * v)) * (0.5 - np.abs(u)) + 0.3 * np.cos(7 * u),
    "plastic": lambda u, v: 0.5 * np.exp(-(((v + 0.24) / 0.07) ** 2)),
}
"""Per material the change of brightness over the product that shows it."""


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of canvas pixels, (H, W) each, with the shorter side from -1 to 1."""
    unit = min(height, width) / 2
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / unit
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / unit
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def draw(product: Product, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Take one photo of a product: pose, scale, place, light and background are drawn anew.

    Args:
        product: What it shows.
        rng: Source of everything that is not the product.
        size: Height and width in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = size[0] * _FINE, size[1] * _FINE
    pose, shift = _pose(product, rng)
    canvas = _canvas(product, pose, shift, height, width)
    x, y = _grid(height, width)
    (a, b), (c, d) = np.linalg.inv(pose).astype(np.float32)
    u, v = a * (x - shift[0]) + b * (y - shift[1]), c * (x - shift[0]) + d * (y - shift[1])
    canvas[(canvas == BASE) & PATTERNS[product.pattern](u, v)] = SECOND

    light = rng.uniform(-0.16, 0.16, 2).astype(np.float32)
    brightness = 1 + light[0] * x + light[1] * y - 0.12 * u * u
    brightness += MATERIALS[product.material](u, v) * _TEXTURED[canvas]
    photo = _palette(product, rng)[canvas] * brightness[..., None]
    inside = _shrink((canvas != NOTHING).astype(np.float32))
    photo = _shrink(photo) + (1 - inside[..., None]) * _background(product, rng, inside)
    photo += rng.normal(0, 2.5, (*size, 1)).astype(np.float32)
    return photo.clip(0, 255).astype(np.uint8)


_TEXTURED = np.zeros(11, dtype=np.float32)
_TEXTURED[[BASE, SECOND, TRIM]] = 1, 1, 0.6


def _shrink(canvas: np.ndarray) -> np.ndarray:
    """(2 H, 2 W, …) averaged to (H, W, …)."""
    return (canvas[::2, ::2] + canvas[1::2, ::2] + canvas[::2, 1::2] + canvas[1::2, 1::2]) * np.float32(0.25)


def _pose(product: Product, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(2, 2) from product to photo coordinates, and the (2,) place of the product's centre."""
    angle = np.radians(np.clip(rng.normal(0, 9), -22, 22))
    scale = rng.uniform(0.68, 0.92)
    stretch = rng.uniform(0.93, 1.07, 2) * (rng.choice((-1, 1)), 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * turn * stretch, rng.uniform(-1, 1, 2) * (0.96 - scale)


def _canvas(product: Product, pose: np.ndarray, shift: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 roles."""
    unit = min(height, width) / 2
    image = Image.new("L", (width, height), NOTHING)
    pencil = ImageDraw.Draw(image)
    scale = unit * np.sqrt(abs(np.linalg.det(pose)))
    for role, points, thickness in [*SILHOUETTES[product.category], *label(product.category, product.brand_number)]:
        placed = (points @ pose.T + shift) * unit + (width / 2, height / 2)
        flat = placed.ravel().tolist()
        if thickness:
            pencil.line(flat, fill=role, width=max(1, round(thickness * scale)), joint="curve")
        else:
            pencil.polygon(flat, fill=role)
            if role in (BASE, TRIM):
                pencil.line([*flat, *flat[:2]], fill=LINE, width=max(1, round(0.03 * scale)))
    return np.array(image)


def _palette(product: Product, rng: np.random.Generator) -> np.ndarray:
    """(roles, 3) float32."""
    base = np.array(COLOURS[product.colour], dtype=np.float32) * rng.uniform(0.93, 1.05) + rng.normal(0, 5, 3)
    bright = base @ (0.299, 0.587, 0.114) > 150
    second = np.array((52, 54, 66) if bright else (240, 238, 230))
    trim = base * 0.72 if base.max() > 90 else base + 36
    line = base * 0.55 if base.max() > 90 else base + 62
    inside, white, metal, tag = (46, 42, 44), (240, 240, 236), (190, 192, 198), (252, 252, 250)
    glass = 0.25 * base + 22
    # In the order of the roles; nothing is black, so that the background is added to it.
    roles = [(0, 0, 0), base, second, trim, line, inside, white, glass, metal, tag, _BRANDS[product.brand_number]]
    return np.array(roles, dtype=np.float32)


def _background(product: Product, rng: np.random.Generator, inside: np.ndarray) -> np.ndarray:
    """(H, W, 3): a wall tinted by the season, light from one side, the product's soft shadow."""
    tint = np.array(_BACKGROUNDS[product.season]) * rng.uniform(0.82, 1.02) + rng.normal(0, 5, 3)
    x, y = _grid(*inside.shape)
    slope = rng.uniform(-0.12, 0.12, 2)
    shadow = Image.fromarray((inside * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(min(inside.shape) / 24))
    offset = max(1, min(inside.shape) // 24)
    dark = np.roll(np.asarray(shadow), (offset, rng.integers(-offset, offset + 1)), (0, 1)) / 255
    wall = (1 + slope[0] * x + slope[1] * y) * (1 - 0.38 * dark)
    return (wall[..., None] * tint).astype(np.float32)
