"""Augmentation of one clip as uint8, with one draw for all its frames; what moves the picture moves its gaze too.

Sources: MAE-DFER (Sun et al., ACM MM 2023): the multi-scale crop of its pretraining; resize, RandAugment, resized crop,
flip and random erasing, in this order, of its fine-tuning. Differences: Pictures stay uint8: standardising
follows on the device, so the erasing noise, standard normal there, is put back on the scale of pixels here and cut off
at 0 and 255. A clip is resampled once: RandAugment's moves and the crop are one map out of the frames as they were
decoded, and colours are changed behind it; before it only where they depend on the whole picture, which is then
resized first, as published. A crop never leaves the frame, where the published one can be a pixel or two larger than a
frame just under `size`.

A flip negates yaw. Rotation, shear, shift, small crops and crops that stretch would need another label than the one we
have; where a setting allows them, the gaze of every training clip becomes unknown (NaN), never wrong. `for_gaze` turns
them off. A square crop of at least 0.8 of the area only shifts and enlarges an aligned face by up to an eighth, under
which the direction in the camera's frame stays nearly as it was, so it is kept.
"""

import math
from statistics import NormalDist
from typing import Literal, Self

import cv2
import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.randaugment import FILL, RandAugmentConfig, draw_operations, looks_around, motion, recolouring
from mien.data_pipelines.resampling import Step, resizing, warping

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, RGB in 0..1; the models standardise with them
STD = np.array([0.229, 0.224, 0.225], np.float32)
GAZE_CROP_AREA = 0.8
SMOOTH_FROM = 1.4  # pixels from one of a random crop to the next: how sharp such a crop is, is chance anyway

# Pixels (256, 1, 3) at the middles of 256 equally likely parts of a normal distribution, standard after standardising.
_RANKS = np.array([NormalDist().inv_cdf((rank + 0.5) / 256) for rank in range(256)])
_NOISE = np.clip(np.rint(255 * (_RANKS[:, None, None] * STD + MEAN)), 0, 255).astype(np.uint8)


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """What is done to a clip between decoding and the batch. Evaluation only pre-crops and resizes."""

    kind: Literal["none", "pretrain", "finetune"] = Field(
        "none", description="none = resize; pretrain = multi-scale crop; finetune = all the rest"
    )
    precrop: Literal["none", "voxceleb2"] = Field(
        "none", description="voxceleb2 = cut the upper middle square, 160 or `size` pixels wide, out of 224x224 frames"
    )
    crop_scales: tuple[float, ...] = Field(
        (1.0, 0.875, 0.75, 0.66), min_length=1, description="pretrain: sides of the crop, as shares of the short side"
    )
    randaugment: RandAugmentConfig = RandAugmentConfig()
    crop_area_min: float = Field(0.08, gt=0, le=1, description="finetune: smallest share of the area kept by the crop")
    crop_aspect: float = Field(4 / 3, ge=1, description="finetune: the crop's width / height lies in 1/this .. this")
    flip: float = Field(0.5, ge=0, le=1, description="finetune: chance of a left-right flip")
    erase: float = Field(0.25, ge=0, le=1, description="finetune: chance that a box is replaced by noise")
    erase_area_min: float = Field(0.02, gt=0, le=1, description="smallest box, as a share of the area")
    erase_area_max: float = Field(1 / 3, gt=0, le=1, description="largest box, as a share of the area")
    erase_aspect: float = Field(1 / 0.3, ge=1, description="the box's height / width lies in 1/this .. this")

    @property
    def keeps_gaze(self) -> bool:
        """Whether a clip's gaze is still known after augmentation."""
        safe = not self.randaugment.geometric or self.randaugment.operations == 0
        square = self.crop_area_min >= GAZE_CROP_AREA and self.crop_aspect == 1
        return self.kind == "none" or (self.kind == "finetune" and safe and square)

    def for_gaze(self) -> Self:
        """Return these settings without what gaze cannot follow: then `keeps_gaze`, unless `kind` is pretrain."""
        return self.model_copy(
            update={
                "randaugment": self.randaugment.model_copy(update={"geometric": False}),
                "crop_area_min": max(self.crop_area_min, GAZE_CROP_AREA),
                "crop_aspect": 1.0,
            }
        )


class Augmentation:
    """What one draw does to a clip: to each frame, as soon as it is decoded, and then to the clip and its gaze."""

    def __init__(self, rng: np.random.Generator, config: AugmentConfig, size: int) -> None:
        self._rng, self._config, self._size = rng, config, size
        self._steps: list[Step] | None = None  # planned at the first frame, since they depend on its size
        self._flipped = False

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """Return uint8 `(size, size, 3)` of a frame `(h, w, 3)`; all frames of a clip must have one size.

        A frame goes through all steps while it is in the cache, and no large array stands between two of them.
        """
        if self._steps is None:
            self._steps = self._plan(*frame.shape[:2])
        for step in self._steps:
            frame = step(frame)
        return frame

    def clip(self, frames: np.ndarray, gaze: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return clip and gaze `(..., 2)`, pitch and yaw, for all frames that `frame` gave; `frames` is changed."""
        config = self._config
        if config.kind == "finetune" and self._rng.random() < config.erase:
            _erase(frames, self._rng, config)
        if not config.keeps_gaze:
            return frames, np.full_like(gaze, np.nan)
        return frames, mirrored_gaze(gaze) if self._flipped else gaze

    def _plan(self, height: int, width: int) -> list[Step]:
        rng, config, size = self._rng, self._config, self._size
        steps: list[Step] = []
        if config.precrop == "voxceleb2":
            steps.append(_cut(*_upper_middle(height, width, size)))
            height = width = max(160, size)
        if config.kind == "none":
            return [*steps, resizing(height, width, size)]
        if config.kind == "pretrain":
            rows, columns = _multi_scale_crop(height, width, rng, config, size)
            return [*steps, _cut(rows, columns), resizing(_length(rows), _length(columns), size)]
        drawn = draw_operations(rng, config.randaugment)
        left, top, right, bottom = _crop_box(rng, config, size)
        self._flipped = rng.random() < config.flip
        colours, moves, whole = recolouring(drawn), motion(drawn), looks_around(drawn)
        if whole:  # the picture is looked at as large as published
            steps += [resizing(height, width, size), *colours]
            height = width = size
        if moves is None:
            rows, columns = _pixels(top, bottom, height), _pixels(left, right, width)
            steps += [_cut(rows, columns), resizing(_length(rows), _length(columns), size, SMOOTH_FROM)]
        else:
            crop = np.array([[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]])
            steps.append(warping(height, width, moves @ crop, size, FILL, SMOOTH_FROM))
        return [*steps, *([] if whole else colours), *([_mirrored] if self._flipped else [])]


def augment(
    clip: np.ndarray, gaze: np.ndarray, rng: np.random.Generator, config: AugmentConfig, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a uint8 clip `(t, size, size, 3)` and its gaze `(..., 2)`, pitch and yaw, for a clip `(t, h, w, 3)`."""
    drawn = Augmentation(rng, config, size)
    return drawn.clip(np.stack([drawn.frame(frame) for frame in clip]), gaze)


def mirrored_gaze(gaze: np.ndarray) -> np.ndarray:
    """Return `(..., 2)` pitch and yaw as a mirror shows them: yaw changes its sign."""
    return gaze * np.array([1, -1], gaze.dtype)


def _mirrored(frame: np.ndarray) -> np.ndarray:
    return cv2.flip(frame, 1)


def _cut(rows: slice, columns: slice) -> Step:
    return lambda frame: frame[rows, columns]


def _length(part: slice) -> int:
    return part.stop - part.start


def _pixels(first: float, last: float, side: int) -> slice:
    """Return the pixels of a side from one share of it to another, at least one."""
    start = min(round(first * side), side - 1)
    return slice(start, max(round(last * side), start + 1))


def _upper_middle(height: int, width: int, size: int) -> tuple[slice, slice]:
    side = max(160, size)
    if (height, width) != (224, 224) or side > 224:
        raise ValueError(
            f"the voxceleb2 pre-crop needs frames of 224x224 pixels and a size up to 224, but got {width}x{height} and "
            f"{size}: set augment.precrop to none for other videos"
        )
    left = (width - side) // 2
    return slice(0, side), slice(left, left + side)


def _multi_scale_crop(
    height: int, width: int, rng: np.random.Generator, config: AugmentConfig, size: int
) -> tuple[slice, slice]:
    """Return rows and columns of one of a few sizes at one of 13 places: corners, edge middles, quarters, centre."""
    sides = [max(int(min(height, width) * scale), 1) for scale in config.crop_scales]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    crop_height, crop_width = min(crop_height, height), min(crop_width, width)  # a side that became `size` may not fit
    places = [(y, x) for y in range(5) for x in range(5) if y % 2 == x % 2]  # quarters of the way down and right
    down, right = places[rng.integers(len(places))]
    top, left = down * ((height - crop_height) // 4), right * ((width - crop_width) // 4)
    return slice(top, top + crop_height), slice(left, left + crop_width)


def _crop_box(rng: np.random.Generator, config: AugmentConfig, size: int) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a box of random area and shape, as shares, on whole pixels of `size`."""
    for _ in range(10):
        area, aspect = _box(rng, config.crop_area_min, 1.0, config.crop_aspect)
        width, height = round(size * math.sqrt(area * aspect)), round(size * math.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            left, top = rng.integers(size - width + 1), rng.integers(size - height + 1)
            return left / size, top / size, (left + width) / size, (top + height) / size
    return 0.0, 0.0, 1.0, 1.0  # no box fitted: the largest one in the middle of a square is all of it


def _erase(clip: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> None:
    """Fill one box of `clip`, the same in all frames, with fresh noise that is standard normal after standardising."""
    height, width = clip.shape[1:3]
    for _ in range(10):
        area, aspect = _box(rng, config.erase_area_min, config.erase_area_max, config.erase_aspect)
        h, w = round(math.sqrt(area * height * width * aspect)), round(math.sqrt(area * height * width / aspect))
        if 0 < w < width and 0 < h < height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            ranks = np.frombuffer(rng.bytes(len(clip) * h * w * 3), np.uint8).reshape(-1, w, 3)
            clip[:, top : top + h, left : left + w] = cv2.LUT(ranks, _NOISE).reshape(-1, h, w, 3)
            return


def _box(rng: np.random.Generator, area_min: float, area_max: float, aspect: float) -> tuple[float, float]:
    """Return a share of the area, uniform, and a ratio of sides, log-uniform in 1/aspect .. aspect."""
    spread = math.log(aspect)
    return rng.uniform(area_min, area_max), math.exp(rng.uniform(-spread, spread))
