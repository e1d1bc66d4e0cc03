"""Small real files to read: videos made by PyAV, folders of frames written by OpenCV."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return frame `index` of every test video: a grey that tells the index (up to 44), and red in the left half."""
    frame = np.full((height, width, 3), 20 + 5 * (index % 45), np.uint8)
    frame[:, : width // 2, 0] = 255
    return frame


def index_of(frame: np.ndarray) -> int:
    """Return which `picture` a decoded frame is."""
    return round((float(np.median(frame[:, frame.shape[1] // 2 + 4 :])) - 20) / 5)


def write_video(path: Path, frames: int = 40, height: int = 48, width: int = 64, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "12", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, height, width), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(
    folder: Path, frames: int = 40, height: int = 48, width: int = 64, name: str = "{:05d}.jpg", first: int = 1
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if name.endswith(".jpg") else []
    for index in range(frames):
        bgr = picture(index, height, width)[..., ::-1]
        assert cv2.imwrite(str(folder / name.format(index + first)), bgr, quality)
    return folder


@pytest.fixture
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def make_frames() -> Callable[..., Path]:
    return write_frames


@pytest.fixture
def which() -> Callable[[np.ndarray], list[int]]:
    """Return a function from decoded frames to the indices they were made from."""
    return lambda frames: [index_of(frame) for frame in frames]
