"""Pictures of clips: strips of frames, labelled sheets of them, saved as PNG or JPEG.

Used where a program leaves something to look at in its run folder: reconstructions while pretraining, the most
confident mistakes after a test. Frames are uint8 RGB `(h, w, c)`, as everywhere; only the file is written as OpenCV
wants it.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

PAPER, INK = 255, (70, 78, 84)


def _picture(frame: npt.ArrayLike) -> Picture:
    """Return the frame as uint8 RGB, grey frames repeated over the channels, or say what is wrong with it."""
    picture = np.asarray(frame)
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 (h, w, 3), got {picture.dtype} {picture.shape}; convert it first")
    return picture


def strip(clip: npt.ArrayLike, frames: int = 8, height: int = 64, gap: int = 2) -> Picture:
    """Lay evenly spaced frames of a clip (t, h, w, c) beside one another.

    Args:
        clip: uint8 frames; the first and the last are always shown.
        frames: how many at most.
        height: of the strip in pixels; the width follows the clip's shape.
        gap: white pixels between frames.
    """
    whole = np.asarray(clip)
    if whole.ndim != 4 or not len(whole):
        raise ValueError(f"a strip needs a clip (t, h, w, c) with at least one frame, got shape {whole.shape}")
    chosen = np.linspace(0, len(whole) - 1, min(frames, len(whole))).round().astype(int)
    return _row([_fit(_picture(whole[index]), height) for index in chosen], gap)


def _fit(picture: Picture, height: int) -> Picture:
    """Resize to a height, keeping the shape; shrinking averages, growing keeps pixels visible."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    way = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (width, height), interpolation=way), dtype=np.uint8)


def _row(pictures: Sequence[Picture], gap: int) -> Picture:
    """Join pictures of one height from left to right."""
    space = np.full((pictures[0].shape[0], gap, 3), PAPER, dtype=np.uint8)
    parts = [part for picture in pictures for part in (space, picture)]
    return np.concatenate(parts[1:], axis=1)


def _words(words: str, width: int, height: int) -> Picture:
    """Write words in small grey letters on white, at the left and in the middle of the height."""
    board = np.full((height, width, 3), PAPER, dtype=np.uint8)
    if words:
        cv2.putText(board, words, (0, height // 2 + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
    return board


def grid(
    rows: Sequence[Sequence[npt.ArrayLike]],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    height: int = 64,
    gap: int = 4,
) -> Picture:
    """Lay pictures out as rows, each row at one height, on white, with names of rows at the left and of columns above.

    Args:
        rows: pictures uint8 (h, w, 3) or (h, w), left to right; rows may differ in length and width.
        labels: a name a row, or none.
        columns: a name a column, or none; columns are as wide as the first row's pictures.
        height: of every picture in pixels.
        gap: white pixels between pictures.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("a grid needs at least one row, and a picture in every row")
    fitted = [[_fit(_picture(picture), height) for picture in row] for row in rows]
    bands = [_row(row, gap) for row in fitted]
    names = list(labels) + [""] * (len(rows) - len(labels))
    if columns:
        bands.insert(0, _row([_words(n, p.shape[1], 18) for n, p in zip(columns, fitted[0], strict=False)], gap))
        names.insert(0, "")
    width = max(band.shape[1] for band in bands)
    margin = 10 + 7 * max(len(name) for name in names) if labels else 0
    sheet: list[Picture] = []
    for name, band in zip(names, bands, strict=True):
        full = np.full((band.shape[0], margin + width, 3), PAPER, dtype=np.uint8)
        full[:, :margin] = _words(name, margin, band.shape[0])
        full[:, margin : margin + band.shape[1]] = band
        sheet += [full, np.full((gap, margin + width, 3), PAPER, dtype=np.uint8)]
    return np.concatenate(sheet[:-1], axis=0)


def save(path: Path, picture: npt.ArrayLike, quality: int = 85) -> None:
    """Write a picture as PNG or JPEG, by the file's name; folders are made, an unfinished file is never left."""
    kind = path.suffix.lower()
    if kind not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"a picture is saved as .png or .jpg, got {path.name!r}")
    options = [] if kind == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    done, data = cv2.imencode(kind, cv2.cvtColor(_picture(picture), cv2.COLOR_RGB2BGR), options)
    assert done, f"OpenCV could not encode {path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data.tobytes())
    draft.replace(path)


def shrink(data: bytes, most_bytes: int, most_width: int = 1600) -> bytes:
    """Return a picture file's content as it is, or as a JPEG small enough for a page where it exceeds `most_bytes`.

    Raises:
        ValueError: the bytes are no picture.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise ValueError("the file is no picture that OpenCV can read")
    for width, quality in ((most_width, 85), (most_width, 70), (most_width // 2, 75), (most_width // 4, 70)):
        if len(data) <= most_bytes:
            break
        if picture.shape[1] > width:
            height = max(1, round(picture.shape[0] * width / picture.shape[1]))
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return data
