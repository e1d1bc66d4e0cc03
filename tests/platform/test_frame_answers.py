"""Each frame of a face gets the mean of all answers about it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mien.platform.frame_answers import FrameAnswers, window_answers


def test_a_frame_has_the_mean_probabilities_and_the_mean_direction_of_its_windows() -> None:
    face = FrameAnswers(6, 2, gaze=True)
    face.add([(0, 4)], {"probabilities": np.array([[0.9, 0.1]]), "gaze": np.array([[0.0, 3.0]])})
    face.add([(2, 6)], {"probabilities": np.array([[0.5, 0.5]]), "gaze": np.array([[0.0, -3.0]])})
    assert face.windows.tolist() == [1, 1, 2, 2, 1, 1]
    found = face.probabilities()
    assert found is not None
    assert found[:, 0] == pytest.approx([0.9, 0.9, 0.7, 0.7, 0.5, 0.5])
    gaze, spread = face.gaze() or (np.empty(0), np.empty(0))
    assert np.abs(gaze[2:4, 1]) == pytest.approx(np.pi)  # behind the head, and not at its mean angle 0
    assert gaze[[0, 5], 1] == pytest.approx([3, -3])
    assert np.isnan(spread[[0, 1, 4, 5]]).all() and spread[2:4] == pytest.approx(np.pi - 3, rel=0.01)


def test_answers_of_frames_go_to_their_frames() -> None:
    face = FrameAnswers(5, 2, gaze=False)
    face.add([(0, 2), (2, 2), (2, 5)], {"probabilities": np.array([[1, 0], [0.5, 0.5], [0, 1]])})
    found = face.probabilities()
    assert found is not None and found[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert face.gaze() is None and len(face) == 5


class _Bright(nn.Module):
    """Says how bright a clip's frames are."""

    def __init__(self, per_frame: bool) -> None:
        super().__init__()
        self.per_frame = per_frame

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        bright = batch["clip"].float().mean(dim=(2, 3, 4)) / 255
        both = torch.stack([bright, 1 - bright], dim=-1)
        found = {"probabilities": both.mean(dim=1), "gaze": both.mean(dim=1)}
        return found | ({"frame_probabilities": both, "frame_gaze": both} if self.per_frame else {})


@pytest.mark.parametrize("per_frame", [False, True])
def test_models_of_clips_and_of_frames_answer_alike(per_frame: bool) -> None:
    clip = np.zeros((3, 4, 2, 2, 3), np.uint8)
    clip[:, 2:] = 255
    found = window_answers(_Bright(per_frame), clip, torch.device("cpu"), "fp32")
    for name in ("probabilities", "gaze"):
        assert found[name].shape == (3, 4 if per_frame else 1, 2)
        assert found[name][0, :, 0].tolist() == ([0, 0, 1, 1] if per_frame else [0.5])
