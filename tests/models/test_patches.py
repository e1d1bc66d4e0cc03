"""Tubes are cut and put back in raster order, and every token has its place."""

import math

import pytest
import torch
from torch.nn import functional as F

from mien.models.patches import (
    TubeEmbedding,
    TubesConfig,
    check_clip,
    from_tubes,
    gather,
    position_table,
    standardise,
    to_tubes,
)

TUBES = TubesConfig(frames=6, size=12, patch=4, tubelet=3)


def test_published_sizes() -> None:
    tubes = TubesConfig()
    assert tubes.grid == (8, 10, 10)
    assert tubes.num_tokens == 800
    assert tubes.tube_pixels == 1536


def test_tubes_come_back_as_the_clip() -> None:
    clip = torch.randn(2, 3, 6, 12, 12)
    assert torch.equal(from_tubes(to_tubes(clip, TUBES), TUBES), clip)


def test_a_tube_holds_its_pixels_with_channels_fastest_and_frames_slowest() -> None:
    clip = torch.randn(1, 3, 6, 12, 12)
    t, row, col, frame, y, x, channel = 1, 2, 0, 2, 3, 1, 2
    token = (t * 3 + row) * 3 + col
    inside = ((frame * 4 + y) * 4 + x) * 3 + channel
    assert to_tubes(clip, TUBES)[0, token, inside] == clip[0, channel, t * 3 + frame, row * 4 + y, col * 4 + x]


def test_embedding_is_the_convolution_whose_weights_it_has() -> None:
    embedding = TubeEmbedding(TUBES, 16)
    clip = torch.randn(2, 3, 6, 12, 12)
    convolved = F.conv3d(clip, embedding.weight, embedding.bias, stride=(3, 4, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(to_tubes(clip, TUBES)), convolved, rtol=1e-5, atol=1e-5)


def test_position_table_has_its_closed_form() -> None:
    table = position_table(800, 512)
    for position, channel in ((0, 0), (0, 1), (1, 0), (799, 511), (123, 46), (123, 47)):
        angle = position / 10000 ** (2 * (channel // 2) / 512)
        value = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[position, channel].item() == pytest.approx(value, abs=1e-7)
    assert table.dtype == torch.float32


def test_standardised_pixels_have_imagenets_units_whatever_their_type() -> None:
    clip = torch.randint(0, 256, (1, 2, 4, 4, 3), dtype=torch.uint8)
    standard = standardise(clip)
    assert standard.shape == (1, 3, 2, 4, 4)
    torch.testing.assert_close(standard[0, 1], (clip[0, ..., 1] / 255 - 0.456) / 0.224)
    torch.testing.assert_close(standardise(clip.float()), standard)


def test_gather_takes_each_clips_own_tokens() -> None:
    x = torch.randn(2, 5, 3)
    index = torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(gather(x, index), torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))


@pytest.mark.parametrize("wrong", [{"frames": 7}, {"size": 30}])
def test_tubes_that_do_not_fill_the_clip_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="tubes must fill the clip"):
        TubesConfig(**{"frames": 6, "size": 32, "patch": 8, "tubelet": 3} | wrong)


def test_a_clip_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(6, 12, 12, 3\).*\(1, 6, 10, 12, 3\)"):
        check_clip(torch.zeros(1, 6, 10, 12, 3), TUBES)
