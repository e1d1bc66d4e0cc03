"""Views become one row a video, and no video is lost on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from mien.platform.predict import PredictionError, merge, predict, read, write
from mien.platform.scores import scores

CPU = torch.device("cpu")


class TinyTask(nn.Module):
    """Answers from the mean of each channel; dropout would make it random in training mode."""

    def __init__(self, gaze: bool = True) -> None:
        super().__init__()
        self.dropout, self.head, self.gaze = nn.Dropout(0.5), nn.Linear(3, 2), gaze

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        feature = self.dropout(batch["clip"].float().mean((1, 2, 3)) / 255)
        answer = self.head(feature)
        return {"probabilities": answer.softmax(1)} | ({"gaze": answer} if self.gaze else {})


def manifest(number: int) -> pa.Table:
    return pa.table(
        {
            "video": [f"clip {index}" for index in range(number)],
            "path": ["x"] * number,
            "dataset": ["tiny"] * number,
            "subject": pa.array([None] * number, pa.string()),
            "label": pa.array([index % 2 for index in range(number)], pa.int64()),
            "pitch": pa.array([0.1] * number, pa.float32()),
            "yaw": pa.array([None] * number, pa.float32()),
        }
    )


def batches(rows: list[int], views: int) -> list[dict[str, Any]]:
    clip = np.random.default_rng(0).integers(0, 256, (len(rows) * views, 2, 4, 4, 3), np.uint8)
    clip.flags.writeable = False  # as arrays from Ray's store are
    columns = {"clip": clip, "row": np.repeat(rows, views), "view": np.tile(np.arange(views), len(rows))}
    return [{name: value[start : start + 3] for name, value in columns.items()} for start in range(0, len(clip), 3)]


def test_a_prediction_is_the_same_whatever_the_batches_and_every_time() -> None:
    task = TinyTask().train()
    found = predict(task, batches([4, 2, 7], 2), CPU)
    assert found.column_names == ["row", "view", "probabilities", "pred_pitch", "pred_yaw"]
    assert found["row"].to_pylist() == [4, 4, 2, 2, 7, 7]
    whole = {name: np.concatenate([batch[name] for batch in batches([4, 2, 7], 2)]) for name in ("clip", "row", "view")}
    tensors = {name: torch.tensor(value) for name, value in whole.items()}
    again = predict(task, [tensors], CPU)
    assert np.allclose(found["pred_yaw"], again["pred_yaw"], atol=1e-6)
    assert predict(task, [tensors], CPU) == again
    assert np.allclose([sum(row) for row in found["probabilities"].to_pylist()], 1)


def test_half_precision_answers_are_stored_as_float32_and_views_may_be_absent() -> None:
    (batch,) = batches([0, 1], 1)
    del batch["view"]
    found = predict(TinyTask(gaze=False), [batch], CPU, "bf16")
    assert found.schema.field("probabilities").type == pa.list_(pa.float32())
    assert found["view"].to_pylist() == [0, 0]
    assert "pred_pitch" not in found.column_names


def test_an_empty_stream_is_an_error() -> None:
    with pytest.raises(PredictionError, match="held no batch"):
        predict(TinyTask(), [], CPU)


def views() -> pa.Table:
    """Two views of lines 3 and 1, one of them given twice."""
    return pa.table(
        {
            "row": [3, 1, 3, 1, 1],
            "view": [0, 0, 1, 1, 0],
            "probabilities": pa.array([[1, 0], [0.5, 0.5], [0.5, 0.5], [0, 1], [0.5, 0.5]], pa.list_(pa.float32())),
            "pred_pitch": pa.array([0, 0, 0, 0, 0], pa.float32()),
            "pred_yaw": pa.array(np.radians([170, 20, -170, 40, 20]), pa.float32()),
        }
    )


def test_views_are_averaged_duplicates_count_once_and_truth_is_the_manifests() -> None:
    merged = merge(views(), manifest(5), [1, 3])
    assert merged.column_names == [
        "row",
        "video",
        "subject",
        "dataset",
        "label",
        "pitch",
        "yaw",
        "probabilities",
        "pred_pitch",
        "pred_yaw",
        "views",
    ]
    assert merged["video"].to_pylist() == ["clip 1", "clip 3"]
    assert merged["label"].to_pylist() == [1, 1]
    assert merged["yaw"].to_pylist() == [None, None]
    assert merged["probabilities"].to_pylist() == [[0.25, 0.75], [0.75, 0.25]]
    # The mean of 170 and -170 degrees is behind the head, not in front of it.
    assert np.degrees(merged["pred_yaw"].to_numpy()) == pytest.approx([30, 180], abs=1e-3)
    assert merged["views"].to_pylist() == [2, 2]


def test_rows_keep_the_order_asked_for() -> None:
    assert merge(views(), manifest(5), np.array([3, 1]))["video"].to_pylist() == ["clip 3", "clip 1"]


def test_a_video_without_prediction_and_one_too_many_are_errors_that_name_them() -> None:
    with pytest.raises(PredictionError, match=r"1 were not predicted: clip 4"):
        merge(views(), manifest(5), [1, 3, 4])
    with pytest.raises(PredictionError, match=r"1 do not belong: clip 3"):
        merge(views(), manifest(5), [1])


def test_predictions_survive_the_disk_and_can_be_scored(tmp_path: Path) -> None:
    merged = merge(predict(TinyTask(), batches([4, 2, 0, 1], 2), CPU), manifest(5), [0, 1, 2, 4])
    path = tmp_path / "predictions" / "val.parquet"
    write(merged, path)
    assert read(path) == merged
    assert [file.name for file in path.parent.iterdir()] == ["val.parquet"]
    assert scores(read(path), "ab", seed=0)["num_labelled"] == 4


class FramesTask(TinyTask):
    """Answers for each frame, and for the clip by their mean."""

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        of_frames = batch["clip"].float().mean((2, 3))[..., :2] / 255
        return {"gaze": of_frames.mean(1), "frame_gaze": of_frames}


def test_where_clips_end_with_the_frame_of_their_label_the_last_frame_answers() -> None:
    given = batches([1, 0], 1)
    means = given[0]["clip"].mean((2, 3))[..., :2] / 255
    found = predict(FramesTask(), given, CPU)
    assert found["pred_yaw"].to_pylist() == pytest.approx(means.mean(1)[:, 1].tolist(), abs=1e-6)
    last = predict(FramesTask(), given, CPU, last_frame=True)
    assert last["pred_yaw"].to_pylist() == pytest.approx(means[:, -1, 1].tolist(), abs=1e-6)
    # A model of whole clips has one answer.
    assert predict(TinyTask().eval(), given, CPU, last_frame=True)["pred_yaw"].null_count == 0
