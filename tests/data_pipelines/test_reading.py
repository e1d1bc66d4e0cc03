"""Local batches are the stream's clips in the stream's order, however many threads read them from wherever."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.reading import (
    Batch,
    EvaluationDecodeError,
    ReadConfig,
    load_manifest,
    local_batches,
    local_views,
    read_train,
    read_views,
)
from mien.data_pipelines.sampling import SamplingConfig, stream

Make = Callable[..., Path]


@pytest.fixture
def manifest(tmp_path: Path, make_video: Make, make_frames: Make) -> Manifest:
    """Five clips: two videos, three folders; the last is a stretch of one of them, and has a gaze label."""
    for number in range(2):
        make_video(tmp_path / f"{number}.mp4", frames=30 + number)
        make_frames(tmp_path / f"{number + 2}", frames=10 * number + 8)
    paths = ["0.mp4", "1.mp4", "2", "3", "3"]
    rows = [
        {"video": str(i), "path": path, "dataset": "toy", "label": i % 2, "frames": frames, "height": 48, "width": 64}
        for i, (path, frames) in enumerate(zip(paths, [30, 31, 8, 18, 9], strict=True))
    ]
    rows[4] |= {"start": 5, "pitch": 0.25, "yaw": -0.5, "label": None}
    return build(rows, ("a", "b"), tmp_path, "toy")


@pytest.fixture
def config(manifest: Manifest) -> ReadConfig:
    sampling = SamplingConfig(frames=4, stride=2)
    return ReadConfig(sampling=sampling, augment=AugmentConfig(kind="finetune").for_gaze(), size=32, root=manifest.root)


def equal(one: Batch, two: Batch) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k], equal_nan=k == "gaze") for k in one)


def test_a_batch_has_the_contract_of_the_rooms(manifest: Manifest, config: ReadConfig) -> None:
    ((batch, dropped),) = local_batches(manifest, range(5), 5, 0, config, steps=1)
    assert dropped == []
    shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert shapes == {
        "clip": ("uint8", (5, 4, 32, 32, 3)),
        "row": ("int64", (5,)),
        "draw": ("int64", (5,)),
        "label": ("int64", (5,)),
        "gaze": ("float32", (5, 2)),
        "gaze_spread": ("float32", (5,)),
        "position": ("int64", (5,)),
    }
    place = batch["row"].tolist().index(4)
    assert batch["label"][place] == -1 and np.isfinite(batch["gaze"][place, 0])
    assert np.isnan(np.delete(batch["gaze"], place, axis=0)).all()


def test_batches_are_the_same_for_any_threads_source_and_start(manifest: Manifest, config: ReadConfig) -> None:
    rows = [0, 2, 3, 4]
    packed = load_manifest(manifest, rows, manifest.root, threads=2)
    expected = [batch for batch, _ in local_batches(manifest, rows, 3, 7, config, steps=6)]
    threaded = [batch for batch, _ in local_batches(manifest, rows, 3, 7, config, steps=6, threads=4)]
    shared = [batch for batch, _ in local_batches(manifest, rows, 3, 7, config, steps=6, threads=2, sources=packed)]
    resumed = [batch for batch, _ in local_batches(manifest, rows, 3, 7, config, start_step=2, steps=4)]
    for other in (threaded, shared, expected[:2] + resumed):
        assert len(other) == 6 and all(map(equal, expected, other))
    assert np.array_equal(np.concatenate([b["row"] for b in expected]), stream(rows, 7, 0, 18).row)
    # Another epoch or another seed gives other clips of the same row.
    clips = {
        (row, clip.tobytes())
        for batch in expected
        for row, clip in zip(batch["row"].tolist(), batch["clip"], strict=True)
    }
    assert len(clips) == 18


def test_the_stream_without_end_can_be_left(manifest: Manifest, config: ReadConfig) -> None:
    batches = local_batches(manifest, [0, 2], 2, 0, config, threads=2)
    assert [len(next(batches)[0]["row"]) for _ in range(5)] == [2] * 5
    batches.close()


def test_a_clip_that_cannot_be_decoded_is_dropped_and_reported(manifest: Manifest, config: ReadConfig) -> None:
    broken = Path(manifest.root, "1.mp4")
    broken.write_bytes(b"")
    results = list(local_batches(manifest, [0, 1, 2], 3, 0, config, steps=2, threads=2))
    for step, (batch, dropped) in enumerate(results):
        assert sorted(batch["row"]) == [0, 2]
        (record,) = dropped
        assert record["position"] // 3 == step
        del record["position"]
        assert record == {"row": 1, "video": "1", "path": str(broken), "reason": "is empty (0 bytes)"}
    # A step that loses every clip is a batch of none.
    ((batch, dropped),) = local_batches(manifest, [1], 2, 0, config, steps=1)
    assert batch["clip"].shape == (0, 4, 32, 32, 3) and len(dropped) == 2
    assert batch.keys() == results[0][0].keys()


def test_what_could_not_be_loaded_is_dropped_too(manifest: Manifest, config: ReadConfig) -> None:
    Path(manifest.root, "1.mp4").unlink()
    packed = load_manifest(manifest, [0, 1], manifest.root)
    ((batch, dropped),) = local_batches(manifest, [0, 1], 2, 0, config, steps=1, sources=packed)
    assert batch["row"].tolist() == [0]
    assert dropped[0]["reason"] == "nothing of it was loaded"


def test_evaluation_reads_every_view_in_order_and_without_augmentation(manifest: Manifest, config: ReadConfig) -> None:
    batches = list(local_views(manifest, range(5), 4, config, threads=2))
    rows = np.concatenate([batch["row"] for batch in batches]).tolist()
    views = np.concatenate([batch["view"] for batch in batches]).tolist()
    assert list(zip(rows, views, strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (3, 0),
        (3, 1),
        (4, 0),
        (4, 1),
    ]
    assert [len(batch["row"]) for batch in batches] == [4, 4, 1]
    clips = np.concatenate([batch["clip"] for batch in batches])
    assert np.array_equal(clips[2], read_views(manifest.row(1), 1, config)[0]["clip"])
    # Frames 5, 7, 9, 11 of the folder of frames, from the stretch that starts at 5.
    greys = np.median(clips[7][:, :, 20:, 2], axis=(1, 2))
    assert greys.tolist() == pytest.approx([20 + 5 * frame for frame in (5, 7, 9, 11)], abs=2)


def test_evaluation_fails_and_lists_every_clip_it_cannot_read(manifest: Manifest, config: ReadConfig) -> None:
    Path(manifest.root, "0.mp4").write_bytes(b"")
    Path(manifest.root, "2", "00001.jpg").write_bytes(b"")
    seen = []
    with pytest.raises(
        EvaluationDecodeError, match=r"2 are not.*\n.*0\.mp4: is empty.*\n.*00001\.jpg is empty"
    ) as error:
        for batch in local_views(manifest, [3, 0, 1, 2], 2, config, threads=2):
            seen.append(batch["row"].tolist())
    assert seen == [[3, 3]] and len(error.value.failures) == 2


def test_a_training_clip_follows_from_its_draw(manifest: Manifest, config: ReadConfig) -> None:
    one, again, other = (read_train(manifest.row(0), 0, draw, config)["clip"] for draw in (5, 5, 6))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_sources_can_be_read_only(manifest: Manifest, config: ReadConfig) -> None:
    packed = load_manifest(manifest, range(5), manifest.root)
    packed.data.flags.writeable = False
    ((batch, _),) = local_batches(manifest, range(5), 5, 0, config, steps=1, sources=packed)
    assert batch["clip"].flags.writeable and len(batch["row"]) == 5


@pytest.mark.parametrize("kind", ["still", "reversed", "shuffled"])
def test_motion_is_spoilt_in_training_and_evaluation_alike(manifest: Manifest, config: ReadConfig, kind: str) -> None:
    plain = config.model_copy(update={"augment": AugmentConfig(kind="none")})
    spoilt = plain.model_copy(update={"sampling": config.sampling.model_copy(update={"ablate": kind})})
    row = manifest.row(0)
    for read in (lambda how: read_train(row, 0, 5, how), lambda how: read_views(row, 0, how)[1]):
        before, after, again = read(plain)["clip"], read(spoilt)["clip"], read(spoilt)["clip"]
        assert np.array_equal(after, again)
        if kind == "still":
            assert all(np.array_equal(frame, before[2]) for frame in after)
        elif kind == "reversed":
            assert np.array_equal(after, before[::-1])
        else:
            assert sorted(frame.tobytes() for frame in after) == sorted(frame.tobytes() for frame in before)
