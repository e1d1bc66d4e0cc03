"""An image's size is known from its header, of every kind and wherever it stands; what is too large is not decoded."""

import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.data_pipelines.decode import DecodeError, probe, read
from mien.data_pipelines.image_files import header_size, picture

PICTURE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def encoded(suffix: str, options: list[int] | None = None) -> bytes:
    return cv2.imencode(suffix, PICTURE, options or [])[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".png", []),
        (".bmp", []),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 50]),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),  # lossless
    ],
)
def test_the_header_tells_the_size_of_the_picture(suffix: str, options: list[int]) -> None:
    content = encoded(suffix, options)
    assert header_size(content) == (37, 53) == picture("a", "a", content).shape[:2]
    assert header_size(np.frombuffer(content, np.uint8)) == (37, 53)
    assert header_size(content[:12]) is None


def test_a_jpegs_size_is_found_behind_fill_bytes_and_what_is_no_marker() -> None:
    jpeg = encoded(".jpg")
    for between in (b"\xff\xff\xff", b"\x00garbage", b"\xff\xe1\x00\x0a\xff\xc0 in it"):
        assert header_size(jpeg[:2] + between + jpeg[2:]) == (37, 53)


def huge(kind: str) -> bytes:
    """Return a few bytes that claim 30,000 x 30,000 pixels."""
    content = bytearray(encoded(f".{kind}"))
    if kind == "jpg":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", 30_000, 30_000)
    elif kind == "png":
        content[16:24] = struct.pack(">II", 30_000, 30_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        content[18:26] = struct.pack("<ii", 30_000, -30_000)
    return bytes(content)


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp"])
def test_an_image_that_claims_too_many_pixels_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(huge(kind))
    began = time.perf_counter()
    for look in (lambda: probe(path), lambda: read(path, [0])):
        with pytest.raises(DecodeError, match="30000x30000; more than 67,108,864 pixels are not"):
            look()
    assert time.perf_counter() - began < 2  # OpenCV alone takes 19 s for the JPEG


def test_other_formats_pipes_and_folders_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(".tiff"))
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").mkdir()
    for name, reason in (("a", "is not an image"), ("b", "is not a file"), ("c", "must hold images")):
        with pytest.raises(DecodeError, match=reason):
            probe(tmp_path / f"{name}.jpg")
