"""Encoded images to uint8 RGB pictures, by OpenCV, after a look at the size that the file itself tells.

Two hundred bytes can claim 30,000 x 30,000 pixels: OpenCV would work on them for 19 s and take 5 GiB. And it reads
twenty formats, most of them seldom met and little tested; here are four.
"""

from pathlib import Path

import cv2
import numpy as np

from mien.data_pipelines.video_files import Bytes, DecodeError, check_size

cv2.setNumThreads(1)  # clips are read side by side; threads inside one small frame only get in each other's way

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
HEAD_BYTES = 2**16  # in which nearly every image tells its size


def picture(path: str | Path, name: str, content: Bytes) -> np.ndarray:
    """Return an image as uint8 `(h, w, c)`; raises DecodeError, about `path`, naming the image."""
    if not len(content):
        raise DecodeError(path, f"{name} is empty (0 bytes)")
    size = header_size(content)
    if size is None:
        raise DecodeError(path, f"{name} is not an image that can be decoded (JPEG, PNG, BMP or WebP)")
    check_size(path, *size)
    try:
        made = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DecodeError(path, f"{name} is not an image that can be decoded: {error.err}") from error
    if made is None:
        raise DecodeError(path, f"{name} is not an image that can be decoded")
    return made


def header_size(content: Bytes) -> tuple[int, int] | None:
    """Return height and width as an image's header gives them; None where it is none of the four kinds, or cut off."""
    head = bytes(content[:30])
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(content)
    if len(head) < 30:
        return None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    if head.startswith(b"BM"):
        if int.from_bytes(head[14:18], "little") == 12:  # the header of OS/2
            return int.from_bytes(head[20:22], "little"), int.from_bytes(head[18:20], "little")
        height, width = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (22, 18))
        return abs(height), abs(width)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        match head[12:16]:
            case b"VP8 ":
                return int.from_bytes(head[28:30], "little") & 0x3FFF, int.from_bytes(head[26:28], "little") & 0x3FFF
            case b"VP8L":
                bits = int.from_bytes(head[21:25], "little")
                return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
            case b"VP8X":
                return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
    return None


def _jpeg_size(content: Bytes) -> tuple[int, int] | None:
    """Return the size in a JPEG's first frame header, found as libjpeg finds it: what is no marker is passed over."""
    content, at = bytes(content), 2
    while (at := content.find(b"\xff", at)) >= 0:
        while content[at : at + 1] == b"\xff":
            at += 1
        kind = content[at] if at < len(content) else 0
        at += 1
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # kinds that begin a picture
            sides = content[at + 3 : at + 7]  # behind the segment's length and a byte for the depth
            return (int.from_bytes(sides[:2], "big"), int.from_bytes(sides[2:], "big")) if len(sides) == 4 else None
        if kind in (0x00, 0x01) or 0xD0 <= kind <= 0xD8:  # these have no length
            continue
        if kind in (0xD9, 0xDA):  # the end, or a scan before any frame header
            return None
        at += int.from_bytes(content[at : at + 2], "big")
    return None
