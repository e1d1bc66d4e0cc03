"""Pictures of clips: strips of frames, labelled sheets of them, saved as PNG or JPEG.

Used where a program leaves something to look at in its run folder: reconstructions while pretraining, the most
confident mistakes after a test. Frames are uint8 RGB `(h, w, c)`, as everywhere; only the file is written as OpenCV
wants it. A sheet's paper is transparent, so that it lies on a light and on a dark page.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

INK = (126, 134, 140, 255)  # a grey that is read on white and on black


def _picture(frame: npt.ArrayLike) -> Picture:
    """Return a frame as uint8 RGB or RGBA, grey ones repeated over the channels, or say what is wrong with it."""
    picture = np.asarray(frame)
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 (h, w, 3), got {picture.dtype} {picture.shape}; convert it first")
    return picture


def _fit(frame: npt.ArrayLike, height: int) -> Picture:
    """Resize a frame to a height, keeping its shape; shrinking averages, growing keeps pixels visible."""
    picture = _picture(frame)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    way = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (width, height), interpolation=way), dtype=np.uint8)


def strip(clip: npt.ArrayLike, frames: int = 8, height: int = 64) -> Picture:
    """Lay evenly spaced frames of a clip beside one another.

    Args:
        clip: uint8 (t, h, w, c); the first and the last frame are always shown.
        frames: how many at most.
        height: of the strip in pixels; its width follows from the clip's shape.

    Returns:
        uint8 (height, width, 3).
    """
    whole = np.asarray(clip)
    if whole.ndim != 4 or not len(whole):
        raise ValueError(f"a strip needs a clip (t, h, w, c) with at least one frame, got shape {whole.shape}")
    chosen = np.linspace(0, len(whole) - 1, min(frames, len(whole))).round().astype(int)
    return np.concatenate([_fit(whole[index], height) for index in chosen], axis=1)


def _board(height: int, width: int, words: str = "") -> Picture:
    """Return transparent paper with words at its left, in the middle of its height."""
    board = np.full((height, width, 4), (255, 255, 255, 0), dtype=np.uint8)
    if words:
        cv2.putText(board, words, (0, height // 2 + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
    return board


def _row(pictures: Sequence[Picture], gap: int) -> Picture:
    """Join pictures of one height from left to right, as RGBA."""
    parts: list[Picture] = []
    for picture in pictures:
        opaque = picture if picture.shape[2] == 4 else cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA)
        parts += [np.asarray(opaque, dtype=np.uint8), _board(picture.shape[0], gap)]
    return np.concatenate(parts[:-1], axis=1)


def grid(
    rows: Sequence[Sequence[npt.ArrayLike]],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    height: int = 64,
    gap: int = 4,
) -> Picture:
    """Lay pictures out as rows on transparent paper, with names of rows at the left and of columns above.

    Args:
        rows: pictures uint8 (h, w, 3) or (h, w), left to right; rows may differ in length and width.
        labels: a name a row, or none.
        columns: a name a column, or none; columns are as wide as the first row's pictures.
        height: of every picture in pixels.
        gap: pixels between pictures.

    Returns:
        uint8 (h, w, 4).
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("a grid needs at least one row, and a picture in every row")
    fitted = [[_fit(picture, height) for picture in row] for row in rows]
    bands = [_row(row, gap) for row in fitted]
    names = list(labels) + [""] * (len(rows) - len(labels))
    if columns:
        bands.insert(0, _row([_board(18, p.shape[1], n) for n, p in zip(columns, fitted[0], strict=False)], gap))
        names.insert(0, "")
    margin = 10 + 7 * max(len(name) for name in names) if labels else 0
    width = margin + max(band.shape[1] for band in bands)
    sheet: list[Picture] = []
    for name, band in zip(names, bands, strict=True):
        line = _board(band.shape[0], width, name)
        line[:, margin : margin + band.shape[1]] = band
        sheet += [line, _board(gap, width)]
    return np.concatenate(sheet[:-1], axis=0)


def save(path: Path, picture: npt.ArrayLike, quality: int = 85) -> None:
    """Write a picture as PNG or JPEG (on white), by the file's name; an unfinished file is never left under it."""
    kind, content = path.suffix.lower(), _picture(picture)
    if kind not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"a picture is saved as .png or .jpg, got {path.name!r}")
    if content.shape[2] == 4 and kind != ".png":
        opaque = content[:, :, 3:] / 255
        content = (content[:, :, :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
    turned = cv2.cvtColor(content, cv2.COLOR_RGBA2BGRA if content.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(kind, turned, [] if kind == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, f"OpenCV could not encode {path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data.tobytes())
    draft.replace(path)


def shrink(data: bytes, most_bytes: int, most_width: int = 1600) -> bytes:
    """Return a picture file's content as it is, or as a WebP small enough for a page where it exceeds `most_bytes`.

    Raises:
        ValueError: the bytes are no picture.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if picture is None:
        raise ValueError("the file is no picture that OpenCV can read")
    for width, quality in ((most_width, 88), (most_width, 75), (most_width // 2, 75), (most_width // 4, 60)):
        if len(data) <= most_bytes:
            break
        if picture.shape[1] > width:
            height = max(1, round(picture.shape[0] * width / picture.shape[1]))
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    return data
