"""What a model says of each frame of one face, from overlapping windows: mean probabilities and mean direction.

A window's answer counts for all frames that it is about. Probabilities are averaged as those of a video's views are
(`predict.merge`), gaze as directions (`frame_gaze`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mien.platform.frame_gaze import FrameGaze
from mien.platform.loop import Precision, autocast

Answers = dict[str, np.ndarray]


@torch.inference_mode()
def window_answers(task: nn.Module, clip: np.ndarray, device: torch.device, precision: Precision) -> Answers:
    """Return what a task says of windows (b, t, h, w, c): `probabilities` (b, a, K) and `gaze` (b, a, 2), float64.

    a is t for a model that answers for each frame, else 1. The task is left in evaluation mode.
    """
    plain: Any = task.eval()
    with autocast(device, precision):
        said = plain.predict({"clip": torch.from_numpy(clip).to(device)})
    found = {}
    for name in ("probabilities", "gaze"):
        if name in said:
            answer = said[f"frame_{name}"] if f"frame_{name}" in said else said[name][:, None]
            found[name] = answer.double().cpu().numpy()
    return found


class FrameAnswers:
    """The answers about the frames of one face, summed as they come; about 90 bytes a frame."""

    def __init__(self, num_frames: int, num_classes: int, gaze: bool) -> None:
        """Make room; `num_classes` is 0 where classes are not told."""
        self.windows = np.zeros(num_frames, np.int32)  # answers about each frame
        self._sums = np.zeros((num_frames, num_classes), np.float32)
        self._gaze = FrameGaze(num_frames) if gaze else None

    def __len__(self) -> int:
        return len(self.windows)

    def add(self, told: Sequence[tuple[int, int]], answers: Answers) -> None:
        """Take in one window's answers, (a, K) and (a, 2), each about the frames first..last-1 of `told`."""
        for place, (first, last) in enumerate(told):
            if last <= first:
                continue
            self.windows[first:last] += 1
            if self._sums.shape[1]:
                self._sums[first:last] += answers["probabilities"][place]
            if self._gaze is not None:
                self._gaze.add(np.arange(first, last), answers["gaze"][place][None, None])

    def probabilities(self) -> np.ndarray | None:
        """Return the mean probabilities (frames, K), or None where classes are not told."""
        assert self.windows.all(), "a frame was left without an answer"
        return self._sums / self.windows[:, None].astype(np.float32) if self._sums.shape[1] else None

    def gaze(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return pitch and yaw (frames, 2) and their spread (frames,), radians; None where gaze is not told."""
        return None if self._gaze is None else (self._gaze.angles(), self._gaze.spread())
