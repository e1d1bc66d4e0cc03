"""RandAugment for video: a few random operations on a uint8 clip, the same for all its frames.

The operations and their magnitudes are those of `rand-m7-n4-mstd0.5-inc1` of the published recipe (MAE-DFER, after
RandAugment, Cubuk et al. 2020), where a larger magnitude is always the stronger change; each agrees with Pillow's
operation of that name up to rounding. At magnitude 7, posterize leaves 2 bits.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from pydantic import BaseModel, Field

FILL = 128  # grey of what comes in from outside the picture

Operation = Callable[[np.ndarray, float, float], np.ndarray]  # clip (t,h,w,3), magnitude 0..10, sign -1 or 1 -> clip


class RandAugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """How many operations, how strong."""

    operations: int = Field(4, ge=0, description="operations drawn for a clip, with replacement; 0 = none")
    probability: float = Field(0.5, ge=0, le=1, description="chance that a drawn operation is applied")
    magnitude: float = Field(7.0, ge=0, le=10, description="mean strength, 0..10")
    magnitude_std: float = Field(0.5, ge=0, description="standard deviation of the strength, drawn for each operation")
    geometric: bool = Field(True, description="draw rotations, shears and shifts too; off where gaze is learned")


def randaugment(clip: np.ndarray, rng: np.random.Generator, config: RandAugmentConfig) -> np.ndarray:
    """Return `(t, h, w, 3)` uint8 after the operations that `rng` draws."""
    drawn = OPERATIONS | GEOMETRIC if config.geometric else OPERATIONS
    for name in rng.choice(list(drawn), config.operations):
        applied = rng.random() < config.probability
        magnitude = float(np.clip(rng.normal(config.magnitude, config.magnitude_std), 0, 10))
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if applied:
            clip = drawn[name](clip, magnitude, sign)
    return clip


def _look_up(clip: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replace every level by `values[level]`, float (256,) or, for each channel, (256, 3); fractions are cut off."""
    table = np.clip(values, 0, 255).astype(np.uint8)
    flat = clip.reshape(-1, *clip.shape[-2:])
    return cv2.LUT(flat, np.broadcast_to(table.reshape(256, 1, -1), (256, 1, 3))).reshape(clip.shape)


_LEVELS = np.arange(256.0)


def _auto_contrast(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return np.stack([_look_up(frame, _stretched(frame)) for frame in clip])


def _stretched(frame: np.ndarray) -> np.ndarray:
    """Return the levels (256, 3) that spread each channel of a frame over 0..255."""
    low = cv2.reduce(frame, 0, cv2.REDUCE_MIN)[0].min(axis=0).astype(float)
    high = cv2.reduce(frame, 0, cv2.REDUCE_MAX)[0].max(axis=0).astype(float)
    scale = 255 / np.maximum(high - low, 1)
    return np.where(high > low, (_LEVELS[:, None] - low) * scale, _LEVELS[:, None])


def _equalize(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return np.stack([_look_up(frame, _equalized(frame)) for frame in clip])


def _equalized(frame: np.ndarray) -> np.ndarray:
    """Return the levels (256, 3) that make each channel's histogram flat, by Pillow's rule."""
    tables = []
    for channel in range(frame.shape[-1]):
        counts = cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        tables.append((step // 2 + np.cumsum(counts) - counts) // step if step else _LEVELS)
    return np.stack(tables, axis=-1)


def _invert(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return 255 - clip


def _posterize(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    bits = 4 - int(0.4 * magnitude)
    return clip & np.uint8(256 - 2 ** (8 - bits))


def _solarize(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    threshold = 256 - int(25.6 * magnitude)
    return _look_up(clip, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return _look_up(clip, np.where(_LEVELS < 128, _LEVELS + int(11 * magnitude), _LEVELS))


def _factor(magnitude: float, sign: float) -> float:
    """Return the weight of the picture against its plain form; 1 is no change."""
    return 1 + sign * 0.09 * magnitude


def _color(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    factor = _factor(magnitude, sign)
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    flat = cv2.transform(clip.reshape(-1, *clip.shape[2:]), factor * np.eye(3) + (1 - factor) * grey)
    return flat.reshape(clip.shape)


def _contrast(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    factor = _factor(magnitude, sign)
    means = [int(cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] + 0.5) for frame in clip]
    return np.stack([_look_up(frame, m + factor * (_LEVELS - m)) for frame, m in zip(clip, means, strict=True)])


def _brightness(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return _look_up(clip, _factor(magnitude, sign) * _LEVELS)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _sharpness(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    factor = _factor(magnitude, sign)
    sharpened = clip.copy()  # the outermost pixels stay as they are
    for frame, out in zip(clip, sharpened, strict=True):
        smooth = cv2.filter2D(frame, -1, _SMOOTH)
        out[1:-1, 1:-1] = cv2.addWeighted(frame, factor, smooth, 1 - factor, 0)[1:-1, 1:-1]
    return sharpened


def _rotate(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    angle = math.radians(3 * magnitude * sign)
    return _warp(clip, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], about_centre=True)


def _shear_x(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return _warp(clip, [[1, 0.03 * magnitude * sign], [0, 1]])


def _shear_y(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return _warp(clip, [[1, 0], [0.03 * magnitude * sign, 1]])


def _translate_x(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return _warp(clip, [[1, 0], [0, 1]], (0.045 * magnitude * sign * clip.shape[2], 0))


def _translate_y(clip: np.ndarray, magnitude: float, sign: float) -> np.ndarray:
    return _warp(clip, [[1, 0], [0, 1]], (0, 0.045 * magnitude * sign * clip.shape[1]))


def _warp(
    clip: np.ndarray, linear: list[list[float]], shift: tuple[float, float] = (0, 0), about_centre: bool = False
) -> np.ndarray:
    """Return frames whose point p comes from `linear` p + `shift`, p = (x, y) from the upper left corner or the centre.

    Bicubic; what comes from outside is grey. Pixel (0, 0) has its middle at (0.5, 0.5).
    """
    height, width = clip.shape[1:3]
    matrix = np.array(linear, np.float64)
    origin = np.array([width / 2, height / 2] if about_centre else [0.0, 0.0]) - 0.5
    offset = origin - matrix @ origin + shift
    whole = np.column_stack([matrix, offset])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    warped = np.empty_like(clip)
    for frame, out in zip(clip, warped, strict=True):
        cv2.warpAffine(frame, whole, (width, height), out, flags, cv2.BORDER_CONSTANT, (FILL, FILL, FILL))
    return warped


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
GEOMETRIC: dict[str, Operation] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
