"""Clips of 8 to 64 frames come from long videos, videos shorter than a clip, and single images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.datasets import videos
from mien.data_pipelines.datasets.videos import VideosConfig
from mien.data_pipelines.reading import ReadConfig, local_batches, local_views
from mien.data_pipelines.sampling import SamplingConfig

Make = Callable[..., Path]


@pytest.mark.parametrize("rule", ["pretrain", "finetune", "ending"])
@pytest.mark.parametrize("frames", [8, 16, 32, 64])
def test_every_length_of_clip_is_cut_from_long_and_short_videos_and_from_images(
    tmp_path: Path, make_video: Make, make_frames: Make, frames: int, rule: str
) -> None:
    for suffix, length in ((".mp4", 300), (".avi", 90), (".mkv", 5), (".webm.mp4", 1)):
        make_video(tmp_path / f"{length}{suffix}", frames=length)
    make_frames(tmp_path / "images", frames=2)
    manifest = videos.read(VideosConfig(root=str(tmp_path), files="both"))
    assert sorted(manifest.column("frames")) == [1, 1, 1, 5, 90, 300] and not manifest.rejected
    sampling = SamplingConfig.model_validate({"rule": rule, "frames": frames})
    read = ReadConfig(sampling=sampling, augment=AugmentConfig(kind="finetune"), size=32, root=manifest.root)
    for batch, dropped in local_batches(manifest, range(6), 6, 0, read, steps=2):
        assert not dropped and batch["clip"].shape == (6, frames, 32, 32, 3)
    views = list(local_views(manifest, range(6), 64, read))
    clips, rows = (np.concatenate([batch[name] for batch in views]) for name in ("clip", "row"))
    assert clips.shape[1:] == (frames, 32, 32, 3) and set(rows.tolist()) == set(range(6))
    for row, length in enumerate(manifest.column("frames")):
        if length == 1:  # the one picture again and again
            assert all((clip == clip[0]).all() for clip in clips[rows == row])
