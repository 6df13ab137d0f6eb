"""Product photos as small uint8 arrays of one size: decoded safely, aspect kept, padded with their own background."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 64_000_000
"""Larger images are refused from their header alone: a few kilobytes can decompress to gigabytes."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # leaves out those that run interpreters, such as EPS


class BadImageError(ValueError):
    """An image that cannot be used; the message is the reason in words."""


def is_absent(cell: Any) -> bool:
    """Whether an image cell says that there is no image (which is not the same as a broken one)."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") is None and not cell.get("path")
    return (
        cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))
    )


def load(cell: Any, size: tuple[int, int], folder: Path | None = None) -> np.ndarray:
    """Decode one image and fit it into a box.

    Args:
        cell: A path, encoded bytes, ``{"bytes": …, "path": …}``, a PIL image, or a uint8 array (H, W, 3) or (H, W).
        size: Height and width of the result in pixels.
        folder: Where relative paths start.

    Returns:
        (height, width, 3) uint8.

    Raises:
        BadImageError: It is not an image, or a broken, empty or gigantic one.
    """
    if isinstance(cell, np.ndarray) and cell.shape == (*size, 3) and cell.dtype == np.uint8:
        return cell
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; its bomb warning is our error below
            return fit(to_rgb(_open(cell, folder), size), size)
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(f"decompression bomb: {error}") from None
    except Image.UnidentifiedImageError:
        raise BadImageError(f"undecodable: not one of {', '.join(_FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, zlib.error, EOFError, …
        kind = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImageError(f"{kind}: {error or type(error).__name__}") from None


def _open(cell: Any, folder: Path | None) -> Image.Image:
    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, np.ndarray):
        if cell.dtype != np.uint8:
            raise BadImageError(f"wrong type: an array of {cell.dtype}, not uint8")
        return Image.fromarray(cell)
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell["path"]
    if isinstance(cell, str | Path):
        path = Path(folder or "", cell)
        if not path.is_file():
            raise BadImageError(f"file not found: {cell}")
        cell = path.read_bytes()
    if not isinstance(cell, bytes | bytearray | memoryview):
        raise BadImageError(f"wrong type: {type(cell).__name__}, not image bytes or a path")
    if not len(cell):
        raise BadImageError("zero bytes: the file is empty")
    return Image.open(io.BytesIO(cell), formats=_FORMATS)


def to_rgb(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Turned upright (EXIF), on white where transparent, in RGB.

    Args:
        image: An opened image, not yet decoded.
        size: Height and width wanted later: a JPEG is then decoded at a fraction of its resolution, never below twice
            this.

    Raises:
        BadImageError: It has more than :data:`MAX_PIXELS` pixels.
    """
    if image.width * image.height > MAX_PIXELS:
        limit = f"the limit is {MAX_PIXELS // 1_000_000} million pixels"
        raise BadImageError(f"decompression bomb: {image.width} x {image.height}, {limit}")
    if size is not None and image.format in ("JPEG", "MPO"):
        image.draft("RGB", (2 * max(size), 2 * max(size)))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scale an RGB image until it touches the box, aspect kept, and pad to the box with its border's median colour.

    Returns:
        (height, width, 3) uint8, the image centred.
    """
    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if inner != image.size:
        image = image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.asarray(image)
    if pixels.shape == (height, width, 3):
        return pixels
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = np.median(border, axis=0).round().astype(np.uint8)
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def encode(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as JPEG bytes: a notebook holds many, and PNG takes four times the space."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
