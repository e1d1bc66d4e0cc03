"""What a model says of faces, drawn over a frame: box, class, a bar for each probability, and the gaze as an arrow.

Gaze has Gaze360's frame: x to the left in the image, y up, z away from the camera, pitch = asin(y), yaw = atan2(x, -z).
The arrow is the direction as the camera sees it, so a face that looks to the image's left bears an arrow to the left,
and one that looks into the camera a dot.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from mien.platform.pictures import Picture

Colour = tuple[int, int, int]  # RGB
FACE_COLOURS: tuple[Colour, ...] = (
    (64, 156, 255), (255, 149, 43), (72, 205, 110), (232, 92, 190), (245, 214, 66), (70, 214, 214),
)  # fmt: skip
CLASS_COLOURS: tuple[Colour, ...] = (
    (246, 190, 44), (72, 128, 222), (158, 164, 170), (222, 66, 60), (250, 130, 48), (104, 168, 72),
    (150, 92, 200), (64, 190, 190), (236, 120, 176), (140, 100, 70), (188, 204, 90), (90, 90, 150),
)  # fmt: skip
ARROW: Colour = (255, 64, 64)
INK, PAPER = (255, 255, 255), (18, 20, 24)
PAPER_SHARE = 0.62  # of a panel's paper over the picture
LETTER_SHARE, LETTER_PX = 1 / 32, (14, 44)  # a letter's height: share of the shorter side, and bounds in pixels
EYES = 0.12  # how far above the middle of a box the eyes are, share of its height
FEW_FACES, TOP_CLASSES = 2, 3  # of more faces only the likeliest classes are drawn


class Shown(NamedTuple):
    """What is drawn of one face; `box` is centre x, centre y, width and height in pixels."""

    number: int
    box: np.ndarray
    probabilities: np.ndarray | None = None  # (K,)
    gaze: np.ndarray | None = None  # (2,) pitch and yaw, radians
    short: bool = False  # the face was there for less than a clip


class _Area(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    def shared(self, other: "_Area") -> int:
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0) * max(tall, 0)


class Canvas:
    """Where a video's frames are drawn: even sides, neither too small for words nor too large for players."""

    def __init__(self, size: tuple[int, int], short_side: int, long_side: int) -> None:
        """Take the first frame's height and width; the shorter side grows to `short_side`, the longer is kept below."""
        wanted = max(1.0, short_side / min(size))
        scale = min(wanted, long_side / max(size))
        self.size = (max(2, round(size[0] * scale / 2) * 2), max(2, round(size[1] * scale / 2) * 2))

    def lay(self, picture: Picture) -> tuple[Picture, float, np.ndarray]:
        """Return a frame on the canvas, its scale, and the place of its upper left corner, x and y.

        A frame of another shape than the first, as in a film whose format changes, stands in the middle of black.
        """
        height, width = picture.shape[:2]
        scale = min(self.size[0] / height, self.size[1] / width)
        tall, wide = (min(round(side * scale), most) for side, most in zip((height, width), self.size, strict=True))
        if self.size[0] - tall < 2 and self.size[1] - wide < 2:
            tall, wide = self.size  # rounding to even sides is no other shape
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = picture if (tall, wide) == (height, width) else cv2.resize(picture, (wide, tall), interpolation=way)
        top, left = (self.size[0] - tall) // 2, (self.size[1] - wide) // 2
        laid = np.zeros((*self.size, 3), np.uint8)
        laid[top : top + tall, left : left + wide] = resized
        return laid, scale, np.array([left, top])


def arrow(gaze: np.ndarray, length: float) -> tuple[float, float]:
    """Return the pixels to the right and down by which an arrow of a gaze (pitch, yaw in radians) points."""
    pitch, yaw = float(gaze[0]), float(gaze[1])
    return -length * math.cos(pitch) * math.sin(yaw), -length * math.sin(pitch)


def draw(picture: Picture, faces: Sequence[Shown], classes: Sequence[str], note: str = "") -> None:
    """Draw faces, and a note at the lower left, into a picture uint8 RGB `(h, w, 3)`."""
    height, width = picture.shape[:2]
    letter = int(np.clip(round(LETTER_SHARE * min(height, width)), *LETTER_PX))
    taken = [_corners(face.box) for face in faces]
    for face in faces:
        _outline(picture, face, letter)
    for face in faces:
        taken.append(_label(picture, face, classes, letter))
    for face in faces:
        if face.probabilities is not None:
            taken.append(_bars(picture, face, classes, letter, taken, few=len(faces) <= FEW_FACES))
    for face in faces:
        if face.gaze is not None:
            _gaze(picture, face)
    if note:
        wide = _width(note, letter) + letter
        _paper(picture, _Area(0, height - 2 * letter, wide, height))
        _write(picture, note, letter // 2, height - round(0.65 * letter), letter)


def _corners(box: np.ndarray) -> _Area:
    middle, half = box[:2], box[2:] / 2
    return _Area(*np.rint([*(middle - half), *(middle + half)]).astype(int).tolist())


def _outline(picture: Picture, face: Shown, letter: int) -> None:
    left, top, right, bottom = _corners(face.box)
    colour = FACE_COLOURS[face.number % len(FACE_COLOURS)]
    cv2.rectangle(picture, (left, top), (right, bottom), colour, max(2, letter // 8), cv2.LINE_AA)


def _label(picture: Picture, face: Shown, classes: Sequence[str], letter: int) -> _Area:
    """Write number and class above the box, or in it where there is no room above."""
    words = f"#{face.number}"
    if face.probabilities is not None:
        best = int(face.probabilities.argmax())
        words += f" {classes[best]} {face.probabilities[best]:.0%}"
    if face.gaze is not None:
        pitch, yaw = np.rint(np.degrees(face.gaze)).astype(int).tolist()
        words += f"  {abs(yaw)}° {'right' if yaw < 0 else 'left'} {abs(pitch)}° {'down' if pitch < 0 else 'up'}"
    words += "  short" * face.short
    height, width = picture.shape[:2]
    left, top, _, _ = _corners(face.box)
    tall, wide = round(1.5 * letter), _width(words, letter) + letter
    area_top = top - tall if top >= tall else min(max(top, 0), height - tall)
    area_left = max(0, min(left, width - wide))
    area = _Area(area_left, area_top, area_left + wide, area_top + tall)
    colour = FACE_COLOURS[face.number % len(FACE_COLOURS)]
    cv2.rectangle(picture, area[:2], area[2:], colour, cv2.FILLED)
    _write(picture, words, area.left + letter // 2, area.bottom - round(0.4 * letter), letter, PAPER)
    return area


def _bars(
    picture: Picture, face: Shown, classes: Sequence[str], letter: int, taken: Sequence[_Area], few: bool
) -> _Area:
    """Draw a bar for each class beside the box, where it hides least."""
    assert face.probabilities is not None
    order = np.arange(len(classes)) if few else np.argsort(-face.probabilities, kind="stable")[:TOP_CLASSES]
    names = max(_width(name, letter) for name in classes)
    line, bar = round(1.35 * letter), 4 * letter
    wide, tall = names + bar + round(1.8 * letter), line * len(order) + letter // 2
    left, top, right, bottom = _corners(face.box)
    gap = letter // 2
    height, width = picture.shape[:2]
    places = [(right + gap, top), (left - gap - wide, top), (left, bottom + gap), (right - wide, bottom + gap)]
    inside = [(max(0, min(x, width - wide)), max(0, min(y, height - tall))) for x, y in places]
    areas = [_Area(x, y, x + wide, y + tall) for x, y in inside]
    area = min(areas, key=lambda area: sum(area.shared(other) for other in taken))  # of equal ones the first
    _paper(picture, area)
    for place, number in enumerate(order.tolist()):
        base = area.top + letter // 4 + place * line
        share = float(face.probabilities[number])
        _write(picture, classes[number], area.left + letter // 2, base + letter + letter // 8, letter)
        start = area.left + letter + names
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        cv2.rectangle(picture, (start, base + letter // 4), (start + bar, base + letter), (70, 74, 80), cv2.FILLED)
        end = start + round(bar * share)
        cv2.rectangle(picture, (start, base + letter // 4), (end, base + letter), colour, cv2.FILLED)
    return area


def _gaze(picture: Picture, face: Shown) -> None:
    assert face.gaze is not None
    size = float(face.box[2:].max())
    start = np.array([face.box[0], face.box[1] - EYES * face.box[3]])
    tip = start + arrow(face.gaze, size)
    ends = [tuple(np.rint(point).astype(int).tolist()) for point in (start, tip)]
    thick = max(2, round(size / 40))
    reach = float(np.linalg.norm(tip - start))
    for colour, wider in ((PAPER, 2), (ARROW, 0)):  # an edge in the colour of the paper, to be seen on red too
        cv2.circle(picture, ends[0], thick + wider, colour, cv2.FILLED, cv2.LINE_AA)
        if reach > 3 * thick:
            head = min(0.4, 0.11 * size / reach)
            cv2.arrowedLine(picture, ends[0], ends[1], colour, thick + wider, cv2.LINE_AA, tipLength=head)


@lru_cache(maxsize=1)
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


@lru_cache(maxsize=512)
def _width(words: str, letter: int) -> int:
    return int(cv2.getTextSize((1, 1), words, (0, 0), _font(), letter, 500)[2])


def _write(picture: Picture, words: str, x: int, y: int, letter: int, colour: Colour = INK) -> None:
    cv2.putText(picture, words, (x, y), colour, _font(), letter, 500)


def _paper(picture: Picture, area: _Area) -> None:
    """Darken a part of the picture."""
    part = picture[max(area.top, 0) : max(area.bottom, 0), max(area.left, 0) : max(area.right, 0)]
    part[:] = (part * (1 - PAPER_SHARE) + np.array(PAPER) * PAPER_SHARE).astype(np.uint8)
