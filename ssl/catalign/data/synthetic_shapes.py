"""Silhouettes of synthetic products: flat regions, back to front, in a square from -1 to 1 with y downward."""

from __future__ import annotations

from itertools import chain

import numpy as np

NOTHING, BASE, SECOND, TRIM, LINE, INSIDE, WHITE, GLASS, METAL, TAG, MARK = range(11)
"""Roles of a drawn region; a palette turns them into colours."""

Points = np.ndarray
Shape = tuple[int, Points, float]
"""Role, (n, 2) points, and line width; width 0 is a filled polygon."""


def _points(text: str | Points) -> Points:
    """Points written as ``"x y, x y"`` in hundredths."""
    return (
        np.array(text.replace(",", " ").split(), dtype=np.float64).reshape(-1, 2) / 100
        if isinstance(text, str)
        else text
    )


def oval(x: float, y: float, rx: float, ry: float, arc: tuple[float, float] = (0, 360)) -> Points:
    """An ellipse, or the arc between two angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(*arc, 25))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _fill(role: int, given: str | Points, mirror: bool = False, smooth: bool = False) -> list[Shape]:
    points = _points(given)
    if mirror:  # the left half was given; the right one is its reflection
        points = np.concatenate([points, points[::-1] * (-1, 1)])
    if smooth:  # Chaikin (1974): cut every corner
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return [(role, points, 0.0)]


def _stroke(role: int, given: str | Points, width: float, mirror: bool = False) -> list[Shape]:
    points = _points(given)
    return [(role, points, width), (role, points * (-1, 1), width)] if mirror else [(role, points, width)]


def _shapes(*parts: list[Shape]) -> list[Shape]:
    return list(chain(*parts))


SILHOUETTES: dict[str, list[Shape]] = {
    "t-shirt": _shapes(
        _fill(BASE, "-26 -82, -56 -74, -100 -28, -74 -2, -54 -26, -55 88", mirror=True),
        _fill(TRIM, oval(0, -0.82, 0.3, 0.2, (0, 180))),
        _fill(INSIDE, oval(0, -0.84, 0.22, 0.13, (0, 180))),
        _stroke(LINE, "-98 -34, -70 -7", 0.025, mirror=True),
    ),
    "jacket": _shapes(
        _fill(BASE, "-24 -84, -56 -74, -78 -40, -98 56, -72 64, -55 -6, -56 84", mirror=True),
        _fill(TRIM, "-56 72, -56 90", mirror=True),
        _fill(TRIM, "-98 52, -71 58, -71 72, -100 66"),
        _fill(TRIM, "98 52, 71 58, 71 72, 100 66"),
        _fill(INSIDE, "-20 -86, 20 -86, 0 -42"),
        _fill(TRIM, "-24 -92, -34 -74, -12 -40, -2 -50"),
        _fill(TRIM, "24 -92, 34 -74, 12 -40, 2 -50"),
        _stroke(METAL, "0 -46, 0 88", 0.05),
        _stroke(LINE, "-44 28, -20 44", 0.045, mirror=True),
        _stroke(LINE, "-55 -6, -56 -44", 0.03, mirror=True),
    ),
    "dress": _shapes(
        _stroke(TRIM, "-24 -62, -20 -98", 0.07, mirror=True),
        _fill(BASE, "-10 -60, -30 -70, -38 -40, -24 -8, -50 40, -78 86, -30 96", mirror=True),
        _fill(TRIM, "-25 -14, -25 0", mirror=True),
        _stroke(LINE, "-12 10, -30 92", 0.03, mirror=True),
        _stroke(LINE, "0 10, 0 96", 0.03),
    ),
    "skirt": _shapes(
        _fill(BASE, "-40 -66, -88 62, -45 76", mirror=True),
        _fill(TRIM, "-40 -80, -42 -58", mirror=True),
        _stroke(LINE, "-14 -56, -36 74", 0.035, mirror=True),
        _stroke(LINE, "-28 -56, -66 68", 0.035, mirror=True),
        _stroke(LINE, "0 -56, 0 78", 0.035),
    ),
    "trousers": _shapes(
        _fill(BASE, "-46 -86, -58 92, -18 94, -2 -20", mirror=True),
        _fill(TRIM, "-46 -96, -48 -80", mirror=True),
        _stroke(LINE, "0 -80, 0 -20", 0.04),
        _stroke(LINE, "-44 -60, -26 -70, -24 -80", 0.035, mirror=True),
        _stroke(LINE, "-58 82, -19 84", 0.03, mirror=True),
    ),
    "sneakers": _shapes(
        _fill(BASE, "-92 30, -90 -30, -76 -52, -42 -46, -16 -36, 30 -2, 78 6, 96 30", smooth=True),
        _fill(INSIDE, oval(-0.58, -0.42, 0.24, 0.09)),
        _fill(TRIM, "56 4, 80 6, 97 30, 62 30", smooth=True),
        _fill(TRIM, "-92 30, -90 -20, -72 -16, -64 30"),
        _fill(WHITE, "-96 24, 98 24, 100 42, 84 52, -94 52"),
        _stroke(LINE, "-95 40, 99 40", 0.03),
        _stroke(WHITE, "-20 -34, -34 -12", 0.06),
        _stroke(WHITE, "0 -22, -14 0", 0.06),
        _stroke(WHITE, "20 -8, 6 10", 0.06),
    ),
    "boots": _shapes(
        _fill(BASE, "-60 -92, -2 -92, -2 6, 30 26, 68 36, 78 70, -60 70"),
        _fill(TRIM, "-63 -96, 1 -96, 1 -74, -63 -74"),
        _fill(INSIDE, "-64 66, 82 66, 82 80, -10 80, -14 94, -64 94"),
        _stroke(LINE, "-60 22, -20 10, -2 4", 0.035),
        _stroke(LINE, "38 30, 30 66", 0.035),
        _stroke(METAL, "-16 -56, -2 -56", 0.06),
        _stroke(METAL, "-16 -36, -2 -36", 0.06),
        _stroke(METAL, "-16 -16, -2 -16", 0.06),
    ),
    "handbag": _shapes(
        _stroke(TRIM, oval(0, -0.2, 0.42, 0.7, (180, 360)), 0.11),
        _fill(BASE, "-66 -24, -90 76, -84 84", mirror=True),
        _fill(TRIM, "-66 -24, -72 4, -12 30", mirror=True),
        _stroke(LINE, "-72 4, -12 30, 12 30, 72 4", 0.035),
        _fill(METAL, "-10 20, 10 20, 10 38, -10 38"),
    ),
    "backpack": _shapes(
        _stroke(TRIM, oval(0, -0.82, 0.2, 0.18, (180, 360)), 0.09),
        _fill(TRIM, "-62 -30, -84 20, -74 70, -60 70", smooth=True),
        _fill(TRIM, "62 -30, 84 20, 74 70, 60 70", smooth=True),
        _fill(BASE, "-24 -88, -62 -70, -66 20, -66 86, -40 94", mirror=True, smooth=True),
        _stroke(LINE, "-50 -34, -42 -66, 42 -66, 50 -34", 0.04),
        _fill(TRIM, "-46 6, 46 6, 46 78, -46 78", smooth=True),
        _stroke(METAL, "-36 22, 36 22", 0.05),
    ),
    "watch": _shapes(
        _fill(BASE, "-24 -98, -32 -40, -32 40, -24 98", mirror=True),
        _fill(METAL, "49 -8, 63 -8, 63 8, 49 8"),
        _fill(METAL, oval(0, 0, 0.54, 0.54)),
        _fill(LINE, oval(0, 0, 0.45, 0.45)),
        _fill(WHITE, oval(0, 0, 0.41, 0.41)),
        _stroke(INSIDE, "0 0, 0 -31", 0.05),
        _stroke(INSIDE, "0 0, 20 10", 0.06),
    ),
    "cap": _shapes(
        _fill(BASE, "-74 34, -72 -10, -46 -52, 0 -64, 42 -48, 62 -8, 62 34", smooth=True),
        _fill(TRIM, "10 22, 60 14, 100 32, 98 46, 50 42, 8 42", smooth=True),
        _stroke(LINE, "-4 -60, -20 -10, -22 32", 0.035),
        _stroke(LINE, "-4 -60, 28 -10, 30 16", 0.035),
        _fill(TRIM, oval(-0.04, -0.62, 0.1, 0.06)),
    ),
    "sunglasses": _shapes(
        _stroke(BASE, "-92 -30, -100 -6, -96 24", 0.1, mirror=True),
        _fill(BASE, "-4 -26, -50 -40, -96 -34, -90 20, -56 42, -20 26, -8 -4", mirror=True),
        _fill(GLASS, "-18 -16, -48 -25, -81 -21, -77 12, -54 27, -28 17", smooth=True),
        _fill(GLASS, "18 -16, 48 -25, 81 -21, 77 12, 54 27, 28 17", smooth=True),
        _stroke(WHITE, "-68 -14, -56 4", 0.05),
        _stroke(WHITE, "32 -14, 44 4", 0.05),
    ),
}
"""Per category the regions of its drawing, back to front."""

_TAG_PLACES = {
    "t-shirt": "28 -30",
    "jacket": "-28 -12",
    "dress": "0 -38",
    "skirt": "30 40",
    "trousers": "30 -42",
    "sneakers": "-30 8",
    "boots": "-40 -46",
    "handbag": "42 56",
    "backpack": "0 -30",
    "watch": "0 -72",
    "cap": "2 -14",
    "sunglasses": "0 -20",
}
MARKS = [
    oval(0, 0, 1, 1),
    _points("0 -100, 100 90, -100 90"),
    _points("-85 -85, 85 -85, 85 85, -85 85"),
    _points("0 -110, 80 0, 0 110, -80 0"),
    _fill(MARK, "-35 -100, -35 -35, -100 -35, -100 35, -35 35, -35 100", mirror=True)[0][1],
    _points("-100 -90, 100 -90, -100 90, 100 90"),
    _points("-100 30, 0 -100, 100 30, 100 100, 0 -20, -100 100"),
    _points("-110 -40, 110 -40, 110 40, -110 40"),
]
"""Per brand its mark: disc, triangle, square, diamond, cross, hourglass, chevron, bar."""


def label(category: str, brand: int) -> list[Shape]:
    """The small white tag with a brand's mark, where products of a category wear it."""
    place = _points(_TAG_PLACES[category])[0]
    return [(TAG, MARKS[2] * 0.165 + place, 0.0), (MARK, MARKS[brand] * 0.1 + place, 0.0)]
