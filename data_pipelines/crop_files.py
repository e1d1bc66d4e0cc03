"""The files that tracks of faces become: an mp4 or a folder of JPEG frames for each, and a sheet with the boxes drawn.

Each is written under a name that says it is unfinished, and renamed when it is whole.
"""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import av
import cv2
import numpy as np

from mien.data_pipelines.unfinished import SUFFIX

UNFINISHED = SUFFIX
# As decoders read them fastest (ecosystem study, C.1): a keyframe every 16 frames, no frame that refers to a later one.
H264 = {"crf": "16", "preset": "veryfast", "g": "16", "bf": "0", "threads": "1"}
JPEG_QUALITY = 95
SHEET_WIDTH = 240  # of one picture, pixels
SHEET_COLUMNS = 6
COLOURS = ((230, 60, 60), (60, 200, 60), (70, 110, 240), (230, 180, 40), (200, 80, 210), (50, 200, 210))

Kind = Literal["mp4", "frames"]


class CropWriter(Protocol):
    """What takes a track's crops, uint8 RGB `(size, size, 3)`, one after another."""

    def add(self, crop: np.ndarray) -> None:
        """Write one crop."""

    def close(self) -> None:
        """Finish the file."""


class VideoWriter:
    """An mp4."""

    def __init__(self, path: Path, fps: float, size: int) -> None:
        self._path, self._part = path, path.with_name(path.name + UNFINISHED)
        self._container = av.open(str(self._part), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=H264)
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = "yuv420p"

    def add(self, crop: np.ndarray) -> None:
        """Encode one crop."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(crop, format="rgb24")))

    def close(self) -> None:
        """Encode what waits, and give the file its name."""
        self._container.mux(self._stream.encode())
        self._container.close()
        self._part.rename(self._path)


class FolderWriter:
    """A folder of 000001.jpg, 000002.jpg, ..."""

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(path.name + UNFINISHED)
        self._part.mkdir()
        self._count = 0

    def add(self, crop: np.ndarray) -> None:
        """Write one crop."""
        self._count += 1
        done, data = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        (self._part / f"{self._count:06d}.jpg").write_bytes(data.tobytes())

    def close(self) -> None:
        """Give the folder its name."""
        self._part.rename(self._path)


def open_writer(folder: Path, number: int, kind: Kind, fps: float, size: int) -> tuple[str, CropWriter]:
    """Return the name inside `folder` of a track's file, and what writes it."""
    if kind == "mp4":
        return f"{number:03d}.mp4", VideoWriter(folder / f"{number:03d}.mp4", fps, size)
    return f"{number:03d}", FolderWriter(folder / f"{number:03d}")


def empty(folder: Path) -> None:
    """Make `folder`, with nothing in it: what an interrupted run left there is written again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def cut_out(picture: np.ndarray, square: np.ndarray, size: int) -> np.ndarray:
    """Return a square of a picture, centre x, centre y, side, as uint8 `(size, size, 3)`.

    What lies outside of the picture repeats its edge: black corners would be the easiest thing for a network to learn.
    """
    height, width = picture.shape[:2]
    side = max(2, round(float(square[2])))
    left, top = round(float(square[0]) - side / 2), round(float(square[1]) - side / 2)
    right, bottom = left + side, top + side
    inside = picture[
        min(max(top, 0), height - 1) : max(min(bottom, height), 1),
        min(max(left, 0), width - 1) : max(min(right, width), 1),
    ]
    before_y, before_x = max(-top, 0), max(-left, 0)
    if inside.shape[:2] != (side, side):
        after_y, after_x = side - inside.shape[0] - before_y, side - inside.shape[1] - before_x
        before_y, before_x = before_y + min(after_y, 0), before_x + min(after_x, 0)
        inside = cv2.copyMakeBorder(
            inside, before_y, max(after_y, 0), before_x, max(after_x, 0), borderType=cv2.BORDER_REPLICATE
        )
    way = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(inside, (size, size), interpolation=way)


class Sheet:
    """Some frames of a footage with the tracks' boxes (thin) and crops (thick) drawn, as one picture."""

    def __init__(self) -> None:
        self._pictures: list[np.ndarray] = []

    def add(self, index: int, picture: np.ndarray, drawn: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
        """Draw the track numbers, boxes and squares of frame `index`."""
        scale = SHEET_WIDTH / picture.shape[1]
        small = cv2.resize(
            picture, (SHEET_WIDTH, max(1, round(picture.shape[0] * scale))), interpolation=cv2.INTER_AREA
        )
        for number, box, square in drawn:
            colour = COLOURS[number % len(COLOURS)]
            for middle, sides, thick in ((box[:2], box[2:], 1), (square[:2], square[[2, 2]], 2)):
                corners = [tuple(np.rint(scale * (middle + sign * sides / 2)).astype(int).tolist()) for sign in (-1, 1)]
                cv2.rectangle(small, corners[0], corners[1], colour, thick)
            place = (max(corners[0][0], 0) + 2, max(corners[0][1], 0) + 12)
            cv2.putText(small, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
        cv2.putText(small, str(index), (2, small.shape[0] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1)
        self._pictures.append(small)

    def save(self, file: Path) -> None:
        """Write the sheet as PNG, if a frame was drawn."""
        if not self._pictures:
            return
        tallest = max(picture.shape[0] for picture in self._pictures)
        rows = -(-len(self._pictures) // SHEET_COLUMNS)
        sheet = np.zeros((rows * tallest, min(SHEET_COLUMNS, len(self._pictures)) * SHEET_WIDTH, 3), np.uint8)
        for place, picture in enumerate(self._pictures):
            top, left = place // SHEET_COLUMNS * tallest, place % SHEET_COLUMNS * SHEET_WIDTH
            sheet[top : top + picture.shape[0], left : left + SHEET_WIDTH] = picture
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
