"""RandAugment for video: a few random operations on a uint8 clip, the same for all its frames.

The operations and their magnitudes are those of `rand-m7-n4-mstd0.5-inc1` of the published recipe (MAE-DFER, after
RandAugment, Cubuk et al. 2020), where a larger magnitude is always the stronger change; each agrees with Pillow's
operation of that name up to rounding. At magnitude 7, posterize leaves 2 bits.

Operations are drawn here and done in two parts: those on colours by `recolouring`, in the order drawn, with tables that
follow one another as one; those that move the picture by one matrix, `motion`, which `augment` joins with the crop.
Published, each is done for itself in the order drawn, with a bicubic step each: fill that one operation brought in is
coloured by those that follow, and a picture that is moved away and back has lost its edge. Here fill is coloured by all
operations of the clip or, where one of them looks at the whole picture, by none.
"""

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.resampling import Step

FILL = 128  # grey of what comes in from outside the picture

Drawn = tuple[str, float, float]  # an operation's name, its magnitude 0..10, its sign -1 or 1


class RandAugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """How many operations, how strong."""

    operations: int = Field(4, ge=0, description="operations drawn for a clip, with replacement; 0 = none")
    probability: float = Field(0.5, ge=0, le=1, description="chance that a drawn operation is applied")
    magnitude: float = Field(7.0, ge=0, le=10, description="mean strength, 0..10")
    magnitude_std: float = Field(0.5, ge=0, description="standard deviation of the strength, drawn for each operation")
    geometric: bool = Field(True, description="draw rotations, shears and shifts too; off where gaze is learned")


def draw_operations(rng: np.random.Generator, config: RandAugmentConfig) -> list[Drawn]:
    """Return the operations to apply to a clip, in order."""
    names = [*TABLES, *PICTURES, *(MOTIONS if config.geometric else ())]
    drawn = []
    for number in rng.integers(len(names), size=config.operations):
        applied = rng.random() < config.probability
        magnitude = min(max(rng.normal(config.magnitude, config.magnitude_std), 0.0), 10.0)
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if applied:
            drawn.append((names[number], magnitude, sign))
    return drawn


def recolouring(drawn: list[Drawn]) -> list[Step]:
    """Return the drawn operations on colours, for frames uint8 `(h, w, 3)`."""
    steps: list[Step] = []
    table = None  # what the operations since the last other step make of each level
    for name, magnitude, sign in drawn:
        if name in TABLES:
            levels = _levels(TABLES[name](magnitude, sign))
            table = levels if table is None else levels[table]
        elif name in PICTURES:
            steps += [] if table is None else [partial(_look_up, table)]
            steps.append(partial(PICTURES[name], 1 + sign * 0.09 * magnitude))
            table = None
    return steps if table is None else [*steps, partial(_look_up, table)]


def motion(drawn: list[Drawn]) -> np.ndarray | None:
    """Return the drawn moves as one map of `resampling`, from the moved picture to the first; None without any."""
    matrix = None
    for name, magnitude, sign in drawn:
        if name in MOTIONS:
            move = MOTIONS[name](magnitude, sign)
            matrix = move if matrix is None else matrix @ move
    return matrix


def looks_around(drawn: list[Drawn]) -> bool:
    """Return whether a drawn operation gives a pixel a colour that depends on the others of its frame."""
    return any(name in _LOOKING_AROUND for name, _, _ in drawn)


_LEVELS = np.arange(256.0)


def _levels(values: np.ndarray) -> np.ndarray:
    """Return a table of what each level becomes, fractions cut off: uint8 (256,) or, for each channel, (256, 3)."""
    return np.clip(values, 0, 255).astype(np.uint8)


def _look_up(table: np.ndarray, frame: np.ndarray) -> np.ndarray:
    return cv2.LUT(frame, table.reshape(256, 1, -1))


def _posterize(magnitude: float, sign: float) -> np.ndarray:
    step = 2 ** (4 + int(0.4 * magnitude))  # 4 bits are left, or fewer
    return _LEVELS // step * step


def _solarize(magnitude: float, sign: float) -> np.ndarray:
    threshold = 256 - int(25.6 * magnitude)
    return np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS)


def _solarize_add(magnitude: float, sign: float) -> np.ndarray:
    return np.where(_LEVELS < 128, _LEVELS + int(11 * magnitude), _LEVELS)


def _auto_contrast(factor: float, frame: np.ndarray) -> np.ndarray:
    return _look_up(_levels(_stretched(frame)), frame)


def _counts(frame: np.ndarray) -> np.ndarray:
    """Return how often each channel has each level, int64 (256, 3)."""
    counts = [cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts, axis=1).astype(np.int64)


def _stretched(frame: np.ndarray) -> np.ndarray:
    """Return the levels (256, 3) that spread each channel of a frame over 0..255."""
    present = _counts(frame) > 0
    low, high = present.argmax(axis=0), 255 - present[::-1].argmax(axis=0)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    return _LEVELS[:, None] * scale - np.where(high > low, low * scale, 0)


def _equalize(factor: float, frame: np.ndarray) -> np.ndarray:
    return _look_up(_levels(_equalized(frame)), frame)


def _equalized(frame: np.ndarray) -> np.ndarray:
    """Return the levels (256, 3) that make each channel's histogram flat, by Pillow's rule."""
    counts = _counts(frame)
    sums = counts.cumsum(axis=0)
    highest = 255 - (counts[::-1] > 0).argmax(axis=0)
    step = (sums[-1] - counts[highest, range(3)]) // 255
    return np.where(step > 0, (step // 2 + sums - counts) // np.maximum(step, 1), _LEVELS[:, None])


def _contrast(factor: float, frame: np.ndarray) -> np.ndarray:
    mean = int(cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _look_up(_levels(mean + factor * (_LEVELS - mean)), frame)


def _color(factor: float, frame: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(frame, factor, grey, 1 - factor, 0)


def _sharpness(factor: float, frame: np.ndarray) -> np.ndarray:
    # The plain form is smoothed by [1 1 1, 1 5 1, 1 1 1] / 13: 9 parts the mean of 3x3 pixels, 4 parts the middle one.
    mean = (1 - factor) * 9 / 13
    sharpened = cv2.addWeighted(frame, 1 - mean, cv2.blur(frame, (3, 3)), mean, 0)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # the outermost pixels stay as they are
        sharpened[edge] = frame[edge]
    return sharpened


def _rotate(magnitude: float, sign: float) -> np.ndarray:
    angle = math.radians(3 * magnitude * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    centre = _matrix(right=0.5, down=0.5)
    return centre @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.linalg.inv(centre)


def _matrix(lean: float = 0, fall: float = 0, right: float = 0, down: float = 0) -> np.ndarray:
    return np.array([[1, lean, right], [fall, 1, down], [0, 0, 1]])


TABLES: dict[str, Callable[[float, float], np.ndarray]] = {  # the new level (256,) of each level
    "invert": lambda magnitude, sign: 255 - _LEVELS,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "brightness": lambda magnitude, sign: (1 + sign * 0.09 * magnitude) * _LEVELS,
}
PICTURES: dict[str, Callable[[float, np.ndarray], np.ndarray]] = {  # the weight of a frame against its plain form, it
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "contrast": _contrast,
    "color": _color,
    "sharpness": _sharpness,
}
_LOOKING_AROUND = frozenset({"auto_contrast", "equalize", "contrast", "sharpness"})
MOTIONS: dict[str, Callable[[float, float], np.ndarray]] = {  # a map of `resampling`, on a square picture
    "rotate": _rotate,
    "shear_x": lambda magnitude, sign: _matrix(lean=0.03 * magnitude * sign),
    "shear_y": lambda magnitude, sign: _matrix(fall=0.03 * magnitude * sign),
    "translate_x": lambda magnitude, sign: _matrix(right=0.045 * magnitude * sign),
    "translate_y": lambda magnitude, sign: _matrix(down=0.045 * magnitude * sign),
}
