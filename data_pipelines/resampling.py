"""Frames brought to another size, or through an affine map, in one step and without aliasing; uint8, OpenCV.

A map is a 3x3 matrix from a position in the result to the one it shows, both as shares of width and height: (0, 0) is
the upper left corner, (1, 1) the lower right one. So a map holds for frames of every size, and maps multiply.

What shrinks must be averaged. Pillow's bilinear filter, which the published loader uses, is a triangle twice as wide as
the step between pixels; up to half the size a short filter before bilinear interpolation comes as near to it as
OpenCV's area filter does (on 256 to 160 pixels nearer) in 0.4 of the time. Below half the size it is the area filter.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

cv2.setNumThreads(1)  # clips are worked on side by side; threads inside one small frame only get in each other's way

Step = Callable[[np.ndarray], np.ndarray]  # a frame uint8 (h,w,c) -> a frame, maybe of another size; its input stays


def resizing(height: int, width: int, size: int, smooth_from: float = 1.09) -> Step:
    """Return the step from frames of a size to squares of `size` pixels, smoothed where a step is at least so many."""
    if height == width == size:
        return lambda frame: frame
    down, across = height / size, width / size
    if max(down, across) > 2:
        shrink = _shrinking(smaller := (min(height, size), min(width, size)))
        grow = resizing(*smaller, size)
        return lambda frame: grow(shrink(frame))
    smooth = _smoothing(down, across, smooth_from)
    return lambda frame: cv2.resize(smooth(frame), (size, size), interpolation=cv2.INTER_LINEAR)


def warping(height: int, width: int, matrix: np.ndarray, size: int, fill: int, smooth_from: float = 1.09) -> Step:
    """Return the step from frames to squares that show at p the frame's point `matrix` p, and `fill` outside of it."""
    pixels = np.diag([width, height, 1.0]) @ matrix @ np.diag([1 / size, 1 / size, 1.0])
    across, down = np.hypot(pixels[:2, 0], pixels[:2, 1])
    if max(down, across) > 2:  # maps are of shares, so they hold for the smaller frame too
        shrink = _shrinking(smaller := (math.ceil(height / max(down, 1)), math.ceil(width / max(across, 1))))
        warp = warping(*smaller, matrix, size, fill, smooth_from)
        return lambda frame: warp(shrink(frame))
    # Of the frame, what the square's corners enclose is enough, and a pixel around it.
    corners = (pixels @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])[:2]
    left, top = np.maximum(np.floor(corners.min(axis=1)).astype(int) - 2, 0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 2, (width, height)).tolist()
    if left >= right or top >= bottom:
        return lambda frame: np.full((size, size, frame.shape[2]), fill, np.uint8)
    middles = np.arange(size, dtype=np.float32) + np.float32(0.5)
    columns, rows = (
        _places(pixels[axis].astype(np.float32), middles, first, last)
        for axis, (first, last) in enumerate(((left, right), (top, bottom)))
    )
    places = cv2.convertMaps(columns, rows, cv2.CV_16SC2)  # once a clip; a remap is then cheaper than a warpAffine
    smooth = _smoothing(down, across, smooth_from)
    border = cv2.BORDER_CONSTANT, (fill, fill, fill)
    return lambda frame: cv2.remap(smooth(frame[top:bottom, left:right]), *places, cv2.INTER_LINEAR, None, *border)


def _shrinking(smaller: tuple[int, int]) -> Step:
    """Return the step to frames of a height and width, neither larger than before, each pixel the mean of its area."""
    return lambda frame: cv2.resize(frame, smaller[::-1], interpolation=cv2.INTER_AREA)


def _places(row: np.ndarray, middles: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return the positions (h, w) on one axis to which a row of a map leads, from the middle of pixel `first` on.

    On the outer half of an edge pixel they are moved to its middle: no fill is mixed in.
    """
    by_x, by_y, shift = row
    places = np.add.outer(by_y * middles + (shift - np.float32(0.5 + first)), by_x * middles)
    inside = np.clip(places, 0, last - first - 1)
    np.copyto(places, inside, where=np.abs(places - inside) <= 0.5)
    return places


def _smoothing(down: float, across: float, smooth_from: float) -> Step:
    """Return the step that readies frames for bilinear interpolation with steps of `down` and `across` pixels.

    A triangle of a step s has variance s²/6 and interpolation itself is one of 1/6: three taps add the rest.
    """
    if max(down, across) < smooth_from:
        return lambda frame: frame
    shares = [min((max(step, 1) ** 2 - 1) / 12, 0.25) for step in (across, down)]
    along_rows, along_columns = (np.array([share, 1 - 2 * share, share], np.float32) for share in shares)
    return lambda frame: cv2.sepFilter2D(frame, -1, along_rows, along_columns)
