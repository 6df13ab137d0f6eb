"""Photos: aspect, padding, orientation, transparency, and every way of being broken."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from catalign.data import images


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a hundred bytes whose header promises a gigantic image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_native_size_is_kept_bit_for_bit() -> None:
    pixels = noise(80, 60)
    assert np.array_equal(images.load(encoded(pixels), (80, 60)), pixels)


@pytest.mark.parametrize(("height", "width", "box"), [(100, 50, (64, 64)), (30, 90, (64, 64))])
def test_aspect_is_kept_and_the_rest_is_background(height: int, width: int, box: tuple[int, int]) -> None:
    pixels = np.full((height, width, 3), (10, 200, 30), dtype=np.uint8)
    pixels[height // 4 : height - height // 4, width // 4 : width - width // 4] = (250, 0, 0)
    stored = images.load(encoded(pixels), box)
    assert stored.shape == (*box, 3)
    assert stored.dtype == np.uint8
    assert (stored[0, 0] == (10, 200, 30)).all()
    assert (stored[-1, -1] == (10, 200, 30)).all()
    rows, columns = np.nonzero(stored[..., 0] > 130)
    ratio = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    assert ratio == pytest.approx(height / width, rel=0.12)
    assert rows.mean() == pytest.approx((box[0] - 1) / 2, abs=0.6)


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1)])
def test_extreme_shapes_fit(shape: tuple[int, int]) -> None:
    assert (images.load(encoded(np.full((*shape, 3), 9, dtype=np.uint8)), (80, 60)) == 9).all()


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((40, 20, 3), dtype=np.uint8)
    pixels[:20] = 255  # white above black
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stored = images.load(encoded(pixels, "JPEG", exif=exif, quality=95), (40, 20))
    assert stored[:18].mean() < 10
    assert stored[22:].mean() > 245


def test_transparency_becomes_white_and_grey_becomes_rgb() -> None:
    clear = np.zeros((10, 10, 4), dtype=np.uint8)
    assert (images.load(encoded(clear), (10, 10)) == 255).all()
    palette = Image.new("P", (10, 10), 0)
    assert (images.load(encoded(palette, "PNG", transparency=0), (10, 10)) == 255).all()
    grey = np.full((10, 10), 77, dtype=np.uint8)
    assert (images.load(encoded(grey), (10, 10)) == 77).all()
    deep = Image.fromarray(np.full((10, 10), 77 * 256, dtype=np.uint16))
    assert (images.load(encoded(deep), (10, 10)) == 77).all()
    cmyk = Image.new("CMYK", (10, 10), (0, 0, 0, 0))
    assert (images.load(encoded(cmyk, "JPEG"), (10, 10)) > 250).all()


def test_large_jpegs_are_decoded_reduced_yet_alike() -> None:
    ramp = np.tile(np.linspace(0, 255, 1600, dtype=np.uint8)[:, None, None], (1, 1200, 3))
    reduced = images.load(encoded(ramp, "JPEG"), (80, 60)).astype(int)
    exact = images.load(encoded(ramp, "PNG"), (80, 60)).astype(int)
    assert np.abs(reduced - exact).mean() < 2


def test_every_form_of_cell(tmp_path) -> None:
    pixels = noise(8, 8)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    cells = [
        encoded(pixels),
        {"bytes": encoded(pixels), "path": "elsewhere.png"},
        {"bytes": None, "path": "a.png"},
        "a.png",
        tmp_path / "a.png",
        pixels,
        Image.fromarray(pixels),
    ]
    for cell in cells:
        assert not images.is_absent(cell)
        assert np.array_equal(images.load(cell, (8, 8), tmp_path), pixels)
    for cell in (None, "", float("nan"), {"bytes": None, "path": None}):
        assert images.is_absent(cell)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (b"", "zero bytes"),
        (b"not an image", "undecodable"),
        (encoded(noise(64, 64), "JPEG")[:900], "truncated"),
        (encoded(noise(64, 64), "PNG")[:-3000], "truncated"),
        (bomb(), "decompression bomb"),
        (bomb(9_000, 9_000), "decompression bomb: 9000 x 9000"),
        (7, "wrong type: int"),
        (np.zeros((4, 4, 3)), "wrong type: an array of float64"),
        ("absent.jpg", "file not found: absent.jpg"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "undecodable"),
    ],
)
def test_broken_images_say_why(cell: object, reason: str) -> None:
    with pytest.raises(images.BadImageError, match=reason):
        images.load(cell, (16, 16))
