"""Frames brought to another size, or through an affine map, in one step and without aliasing; uint8, OpenCV.

A map is a 3x3 matrix from a position in the result to the one it shows, both as shares of width and height: (0, 0) is
the upper left corner, (1, 1) the lower right one. So a map holds for frames of every size, and maps multiply.

What shrinks must be averaged. Pillow's bilinear filter, which the published loader uses, is a triangle twice as wide as
the step between pixels; up to half the size a short filter before bilinear interpolation comes as near to it as
OpenCV's area filter does (on 256 to 160 pixels nearer) in 0.4 of the time. Below half the size it is the area filter.
"""

from collections.abc import Callable

import cv2
import numpy as np

cv2.setNumThreads(1)  # clips are worked on side by side; threads inside one small frame only get in each other's way

Step = Callable[[np.ndarray], np.ndarray]  # a frame uint8 (h,w,c) -> a frame, maybe of another size; its input stays


def resizing(height: int, width: int, size: int) -> Step:
    """Return the step from frames of a size to squares of `size` pixels."""
    if height == width == size:
        return lambda frame: frame
    down, across = height / size, width / size
    if min(down, across) >= 1 and max(down, across) > 2:
        return lambda frame: cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
    smooth = _smoothing(down, across)
    return lambda frame: cv2.resize(smooth(frame), (size, size), interpolation=cv2.INTER_LINEAR)


def warping(height: int, width: int, matrix: np.ndarray, size: int, fill: int) -> Step:
    """Return the step from frames to squares that show at p the frame's point `matrix` p, and `fill` outside of it."""
    pixels = np.diag([width, height, 1.0]) @ matrix @ np.diag([1 / size, 1 / size, 1.0])
    middles = np.arange(size) + 0.5
    columns, rows = (
        _kept_inside(pixels[axis, 0] * middles + pixels[axis, 1] * middles[:, None] + pixels[axis, 2] - 0.5, side)
        for axis, side in enumerate((width, height))
    )
    places = cv2.convertMaps(columns, rows, cv2.CV_16SC2)  # once a clip; a remap is then cheaper than a warpAffine
    across, down = np.hypot(pixels[:2, 0], pixels[:2, 1])
    smooth = _smoothing(down, across)
    border = cv2.BORDER_CONSTANT, (fill, fill, fill)
    return lambda frame: cv2.remap(smooth(frame), *places, cv2.INTER_LINEAR, None, *border)


def _kept_inside(places: np.ndarray, side: int) -> np.ndarray:
    """Return pixel positions, those on the outer half of an edge pixel moved to its middle: no fill is mixed in."""
    inside = (places >= -0.5) & (places <= side - 0.5)
    return np.where(inside, np.clip(places, 0, side - 1), places).astype(np.float32)


def _smoothing(down: float, across: float) -> Step:
    """Return the step that readies frames for bilinear interpolation with steps of `down` and `across` pixels.

    A triangle of a step s has variance s²/6 and interpolation itself is one of 1/6: three taps add the rest.
    """
    shares = [min((max(step, 1) ** 2 - 1) / 12, 0.25) for step in (across, down)]
    if max(shares) < 0.015:  # steps below 1.09
        return lambda frame: frame
    along_rows, along_columns = (np.array([share, 1 - 2 * share, share], np.float32) for share in shares)
    return lambda frame: cv2.sepFilter2D(frame, -1, along_rows, along_columns)
