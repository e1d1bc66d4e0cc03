"""A model that answers for each frame learns each frame's gaze and is judged by the last where that bears the label."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mien.data_pipelines import reading
from mien.data_pipelines.gaze_labels import with_gaze
from mien.data_pipelines.manifest import Manifest
from mien.experiments import finetune
from mien.platform import config as settings
from mien.platform.run import Run

FRAMES = 4
PER_FRAME = {"name": "gaze", "pool": "patch", "per_frame": True, "spread_scale_deg": 5.0}


@pytest.fixture
def configured(recipes: dict[str, Path], world: Path, tmp_path: Path) -> Callable[..., finetune.FinetuneConfig]:
    """Return a function that gives the settings of a run on clips whose gaze moves from frame to frame."""
    whole = Manifest.read(world / "manifest.parquet")
    count = len(whole)
    moving = np.linspace(-0.3, 0.3, FRAMES)[None] + np.arange(count)[:, None] / 1000
    frames = {"row": np.repeat(np.arange(count), FRAMES), "pitch": np.zeros(count * FRAMES), "yaw": moving.ravel()}
    frames["spread"] = np.tile([0.0, 0.1, 0.2, np.nan], count)
    angles_rad = np.stack([np.zeros(count), moving[:, -1]], axis=1)
    with_gaze(whole, angles_rad, "moving", np.full(count, 0.1), pa.table(frames)).write(tmp_path / "moving.parquet")

    def settle(rule: str = "finetune") -> finetune.FinetuneConfig:
        tree = yaml.safe_load(recipes["finetune"].read_text())
        tree["task"] = PER_FRAME | {"backbone": tree["task"]["backbone"]}
        tree["data"] |= {"manifest": str(tmp_path / "moving.parquet")}
        tree["data"]["sampling"] |= {"rule": rule}
        return settings.rebuild(finetune.FinetuneConfig, tree)

    return settle


def test_a_batch_holds_the_gaze_and_the_spread_of_every_frame(
    configured: Callable[..., finetune.FinetuneConfig], tmp_path: Path
) -> None:
    config, fold = finetune.opened(configured())
    with Run.start(tmp_path / "run", {}, seed=0) as run:
        batch = next(iter(finetune.training_batches(config, fold, run, 0, None)))
    assert batch["gaze"].shape == (8, FRAMES, 2) and batch["gaze_spread"].shape == (8, FRAMES)
    expected = np.linspace(-0.3, 0.3, FRAMES)[None] + batch["row"].numpy()[:, None] / 1000
    assert np.allclose(batch["gaze"][..., 1], expected, atol=1e-6)
    assert np.allclose(batch["gaze_spread"], [[0.0, 0.1, 0.2, 0.0]])
    task = finetune.make_task(config)
    loss = task(batch)["loss"]
    assert torch.isfinite(loss) and loss > 0


@pytest.mark.parametrize("rule", ["finetune", "ending"])
def test_a_clip_is_judged_by_its_mean_or_where_it_ends_with_its_label_by_the_last_frame(
    rule: str, configured: Callable[..., finetune.FinetuneConfig], tmp_path: Path
) -> None:
    config = configured(rule)
    found = finetune.finetune(config, tmp_path / "run")
    videos = pq.read_table(tmp_path / "run" / "predictions" / "val.parquet")
    _, fold = finetune.opened(config)
    _, task, _ = finetune.load_task(tmp_path / "run")
    (view,) = reading.read_views(fold.manifest.row(videos["row"][0].as_py()), 0, fold.read)
    answer = task.predict({"clip": torch.from_numpy(view["clip"])[None]})
    expected = answer["frame_gaze"][0, -1] if rule == "ending" else answer["gaze"][0]
    said = [videos["pred_pitch"][0].as_py(), videos["pred_yaw"][0].as_py()]
    assert said == pytest.approx(expected.tolist(), abs=1e-4)
    assert (answer["frame_gaze"][0, -1] - answer["gaze"][0]).abs().max() > 1e-4  # they differ, so it was told apart
    assert found["angular_error_deg"] > 0 and found["views"].startswith("1")
