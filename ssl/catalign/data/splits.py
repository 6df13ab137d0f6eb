"""Which products are the same, and splits that never divide them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalign.errors import CatalignError

SPLITS = ("train", "val", "test")
MAX_TWINS = 100
"""One picture on more rows than this is a placeholder ("no photo available"), not a product."""

_ALIASES = {"validation": "val", "valid": "val", "dev": "val"}
_CHUNK = 512


def normalise_title(title: str) -> str:
    """Letters and digits alone, in one case: titles that differ in white space or punctuation are the same."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", title).casefold())


def find_groups(titles: Iterable[str], images: np.ndarray, has_image: np.ndarray, *, near: bool = True) -> np.ndarray:
    """Rows that are one product: they share a title or a picture, directly or through others.

    Args:
        titles: N titles; an empty one is shared by nobody.
        images: (N, H, W, 3) uint8, read a part at a time.
        has_image: (N,) bool.
        near: Also join pictures that differ by no more than a re-encoding.

    Returns:
        (N,) int64 group numbers, counted by first appearance. Time and memory grow with N, not with its square.
    """
    keys = np.array([_hash(normalise_title(title)) for title in titles], dtype=np.uint64)
    digests = np.array([_hash(image.tobytes()) for image in images], dtype=np.uint64)
    edges = [_same(keys, keys != _hash("")), _same(digests, has_image, limit=MAX_TWINS)]
    if near:
        edges.append(near_identical(images, _thumbnails(images), has_image))
    return components(len(keys), np.concatenate(edges))


def components(count: int, edges: np.ndarray) -> np.ndarray:
    """Connected components of (E, 2) row pairs: (count,) int64 numbers by first appearance."""
    graph = coo_array((np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return number(connected_components(graph, directed=False)[1])


def number(labels: np.ndarray) -> np.ndarray:
    """Any labels as int64 numbers, counted by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _hash(value: str | bytes) -> int:
    data = value.encode() if isinstance(value, str) else value
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """(N, 8, 8, 3) uint8 area averages."""
    count, height, width = len(images), *images.shape[1:3]
    thumbnails = np.zeros((count, 8, 8, 3), dtype=np.uint8)
    down, across = _averages(height), _averages(width)
    for start in range(0, count, _CHUNK):
        some = np.asarray(images[start : start + _CHUNK])
        rows = down @ some.reshape(len(some), height, width * 3).astype(np.float32)
        means = np.einsum("kw,nhwc->nhkc", across, rows.reshape(-1, 8, width, 3))
        thumbnails[start : start + len(some)] = means.round()
    return thumbnails


def _averages(size: int) -> np.ndarray:
    """(8, size) float32: what every pixel adds to each of eight equal parts."""
    starts, pixels = np.arange(8)[:, None] * size / 8, np.arange(size)
    overlap = np.minimum(starts + size / 8, pixels + 1) - np.maximum(starts, pixels)
    return (np.maximum(overlap, 0) * 8 / size).astype(np.float32)


def _same(keys: np.ndarray, valid: np.ndarray, limit: int | None = None) -> np.ndarray:
    """(E, 2) pairs that chain the valid rows with equal keys; none for a key on more than ``limit`` rows."""
    rows = np.flatnonzero(valid)
    rows = rows[np.argsort(keys[rows], kind="stable")]
    equal = keys[rows[1:]] == keys[rows[:-1]]
    if limit is not None:
        _, inverse, counts = np.unique(keys[rows], return_inverse=True, return_counts=True)
        equal &= counts[inverse][1:] <= limit
    return np.stack([rows[:-1], rows[1:]], axis=1)[equal]


def near_identical(
    images: np.ndarray, thumbnails: np.ndarray, has_image: np.ndarray, *, tables: int = 8, window: int = 8
) -> np.ndarray:
    """Pairs of pictures that differ by no more than a re-encoding.

    Candidates share a cell of p-stable locality-sensitive hashing (Datar et al. 2004) of their 8 x 8 thumbnails, and
    are compared with the next few in it; then their thumbnails and their pixels must agree. Blank pictures and
    placeholders are left out.

    Args:
        images: (N, H, W, 3) uint8.
        thumbnails: (N, 8, 8, 3) uint8.
        has_image: (N,) bool.
        tables: Independent hashes; each finds a pair with a chance above one half.
        window: Neighbours compared within a cell.

    Returns:
        (E, 2) row pairs.
    """
    flat = thumbnails.reshape(len(thumbnails), -1)
    contrast = np.concatenate([some.std(axis=1) for some in np.array_split(flat, len(flat) // _CHUNK + 1)])
    rows = np.flatnonzero(has_image & (contrast > 4))  # grey levels
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((flat.shape[1], tables * 7)).astype(np.float32)
    along = [flat[some] @ directions for some in np.array_split(rows, len(rows) // _CHUNK + 1)]
    projections = np.concatenate(along).reshape(-1, tables, 7)
    found = [np.zeros((0, 2), dtype=np.int64)]
    for table in range(tables):
        # A re-encoding moves a thumbnail's values by a level or two: by 20 or so along a direction, 1/8 of a cell.
        cells = np.floor(projections[:, table, :6] / 160 + generator.random(6)).astype(np.int64)
        fine = projections[:, table, 6]
        mixed = (cells * generator.integers(-(2**62), 2**62, 6)).sum(axis=1)  # wraps around: a hash of the cell
        order = np.lexsort((fine, mixed))
        for step in range(1, window + 1):
            left, right = order[:-step], order[step:]
            together = mixed[left] == mixed[right]
            left, right = rows[left[together]], rows[right[together]]
            close = np.abs(flat[left].astype(np.int16) - flat[right]).max(axis=1, initial=0) <= 6
            found.append(np.stack([left[close], right[close]], axis=1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return _without_placeholders(_confirmed(images, pairs), len(images))


def _confirmed(images: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The pairs whose pixels differ by at most 5 grey levels on average."""
    keep = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), _CHUNK):
        left, right = pairs[start : start + _CHUNK].T
        difference = np.abs(images[left].astype(np.int16) - images[right])
        keep[start : start + _CHUNK] = difference.mean(axis=(1, 2, 3)) <= 5
    return pairs[keep]


def _without_placeholders(pairs: np.ndarray, count: int) -> np.ndarray:
    labels = components(count, pairs)
    return pairs[np.bincount(labels, minlength=1)[labels[pairs[:, 0]]] <= MAX_TWINS]


def leak_aware(groups: np.ndarray, shares: dict[str, float], seed: int = 0) -> np.ndarray:
    """Draw splits so that no group is divided.

    Args:
        groups: (N,) group numbers.
        shares: Share of the rows wanted in each held-out split, such as ``{"val": 0.05, "test": 0.1}``; the rest is
            train. A share above 0 gets at least one group.
        seed: Another seed draws other splits.

    Returns:
        (N,) split names. A share is missed by about half a group at most; groups of more than a tenth of
        the rows always train.

    Raises:
        CatalignError: There are fewer groups than splits.
    """
    sizes = np.bincount(number(groups))
    wanted = {name: share for name, share in shares.items() if share > 0}
    if len(sizes) <= len(wanted):
        raise CatalignError(
            f"{len(groups)} rows are {len(sizes)} different products: too few for {len(wanted) + 1} splits",
            "bring more products: training, validation and test each need some",
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(sizes[order] > max(1, len(groups) // 10), kind="stable")]
    names = np.full(len(sizes), "train", dtype="<U5")
    start = 0
    for place, (name, share) in enumerate(wanted.items()):
        spare = len(sizes) - (len(wanted) - place)  # one group must remain for every split still to be drawn
        totals = np.cumsum(sizes[order[start:spare]])
        stop = start + 1 + int(np.argmin(np.abs(totals - share * len(groups))))
        names[order[start:stop]] = name
        start = stop
    return names[number(groups)]


def given(values: Iterator[str] | list[str], column: str) -> np.ndarray:
    """A catalogue's own splits.

    Raises:
        CatalignError: A value is neither train, val(idation) nor test.
    """
    names = np.array([_ALIASES.get(value.strip().casefold(), value.strip().casefold()) for value in values])
    wrong = sorted(set(names.tolist()) - set(SPLITS))
    if wrong:
        raise CatalignError(
            f"column {column!r} holds {', '.join(repr(name) for name in wrong[:5])}, which is no split",
            "a split is train, val (or validation) or test; set data.columns.split=null to draw splits",
        )
    return names.astype("<U5")


def warn_divided(groups: np.ndarray, splits: np.ndarray) -> int:
    """Warn of products that lie in several splits: what is held out was then partly seen. Returns their number."""
    pairs = np.unique(np.stack([number(groups), number(splits)], axis=1), axis=0)
    divided = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    if len(divided):
        rows = int(np.isin(number(groups), divided).sum())
        warnings.warn(
            f"{len(divided)} products ({rows} rows) are divided between splits: held-out scores will flatter; "
            "data.columns.split=null draws splits that keep them together",
            stacklevel=2,
        )
    return len(divided)
