"""The Ray stream holds the clips of the local one, for any blocks, workers and start; and it never waits for ever."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.blocks import StalledError, StreamConfig, clips_per_block
from mien.data_pipelines.clips import Share, evaluation_views, share, shared, stream, video_frames
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.reading import EvaluationDecodeError, ReadConfig, local_batches, local_views
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.unreadable import DroppedTooManyError

# Blocks of two batches of two clips and segments of two blocks: every border is crossed within a few steps.
CONFIG = StreamConfig(block_clips=4, segment_blocks=2, task_cpus=0.5, dropped_after=6, stall_seconds=60)
CLIPS = 7


@pytest.fixture
def manifest(tmp_path: Path, make_frames: Callable[..., Path], make_video: Callable[..., Path]) -> Manifest:
    """Return seven clips, folders of 8 to 13 frames and one video of 30."""
    for number in range(CLIPS - 1):
        make_frames(tmp_path / str(number), frames=8 + number)
    make_video(tmp_path / "6.mp4", frames=30)
    lengths = {str(number): 8 + number for number in range(CLIPS - 1)} | {"6.mp4": 30}
    rows = [
        {"video": f"v{path}", "path": path, "dataset": "toy", "label": 0, "frames": frames, "height": 48, "width": 64}
        for path, frames in lengths.items()
    ]
    return build(rows, ("a",), tmp_path, "toy")


@pytest.fixture
def read(manifest: Manifest) -> ReadConfig:
    sampling = SamplingConfig(frames=4, stride=2)
    return ReadConfig(sampling=sampling, augment=AugmentConfig(kind="finetune"), size=32, root=manifest.root)


def arrays(batch: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in batch.items()}


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    assert one.keys() == two.keys()
    return all(
        one[name].dtype == two[name].dtype and np.array_equal(one[name], two[name], name == "gaze") for name in one
    )


@pytest.mark.parametrize(
    ("batch_size", "block", "expected"),
    [
        (16, 64, 64),  # a whole number of batches
        (24, 64, 48),
        (96, 64, 48),  # a batch larger than a block: an even part of it
        (7, 3, 1),
        (1, 64, 64),
    ],
)
def test_blocks_and_batches_meet(batch_size: int, block: int, expected: int) -> None:
    assert clips_per_block(batch_size, 1000, StreamConfig(block_clips=block)) == expected


def test_a_block_is_no_larger_than_asked_unless_one_clip_is() -> None:
    published = 16 * 160 * 160 * 3
    assert clips_per_block(8, published, StreamConfig(block_mib=48)) == 40  # 46.9 MiB
    assert clips_per_block(8, 100 * 2**20, StreamConfig(block_mib=48)) == 1


def test_a_batch_of_fewer_clips_than_workers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loop\.batch_size=3 and there are 4: set it to 4 or more"):
        Share.of(0, 4, seed=0, batch_size=3)


@pytest.mark.parametrize("workers", range(1, 7))
def test_parts_that_cannot_be_equal_make_the_same_batches_in_the_same_order(workers: int) -> None:
    rows = np.arange(5)
    whole = list(Share.of(0, 1, 3, 6).places(0, 24, rows))
    shares = [Share.of(rank, workers, 3, 6) for rank in range(workers)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    steps = [part for step in range(4) for s in shares for part in s.places(step * len(s), (step + 1) * len(s), rows)]
    assert steps == whole


def test_workers_parts_are_the_global_batch_at_every_step() -> None:
    rows = np.arange(5)
    whole = list(Share.of(0, 1, 3, 6).places(0, 24, rows))
    parts = [list(Share.of(rank, 3, 3, 6).places(0, 8, rows)) for rank in range(3)]
    assert [place for step in range(4) for part in parts for place in part[2 * step : 2 * step + 2]] == whole
    # From the middle of a batch to the middle of another.
    assert list(Share.of(1, 3, 3, 6).places(3, 7, rows)) == parts[1][3:7]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_stream_is_the_local_one_for_any_number_of_workers_and_any_start(
    manifest: Manifest, read: ReadConfig
) -> None:
    rows = [6, 0, 2, 3, 5]
    expected = [arrays(batch) for batch, _ in local_batches(manifest, rows, 4, 3, read, steps=7)]
    found = [arrays(batch) for batch, _ in stream(manifest, rows, read, CONFIG, seed=3, batch_size=4, steps=7)]
    assert len(found) == 7 and all(map(same, expected, found))

    workers = [
        stream(manifest, rows, read, CONFIG, seed=3, batch_size=4, rank=rank, world_size=2, start_step=2, steps=5)
        for rank in range(2)
    ]
    for step, parts in enumerate(zip(*workers, strict=True), start=2):
        both = [arrays(batch) for batch, _ in parts]
        assert same(expected[step], {name: np.concatenate([part[name] for part in both]) for name in both[0]})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_batch_can_be_written_to_and_no_other_batch_sees_it(manifest: Manifest, read: ReadConfig) -> None:
    expected = [arrays(batch) for batch, _ in local_batches(manifest, range(3), 2, 0, read, steps=4)]
    for step, (batch, _) in enumerate(stream(manifest, range(3), read, CONFIG, seed=0, batch_size=2, steps=4)):
        assert same(expected[step], arrays(batch))
        for values in batch.values():
            values.zero_()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_unreadable_clip_is_reported_beside_its_batch_and_too_many_end_the_run(
    manifest: Manifest, read: ReadConfig
) -> None:
    Path(manifest.root, "6.mp4").write_bytes(b"")
    tolerant = CONFIG.model_copy(update={"max_dropped_ratio": 0.5})
    expected = list(local_batches(manifest, range(CLIPS), 4, 1, read, steps=5))
    found = list(stream(manifest, range(CLIPS), read, tolerant, seed=1, batch_size=4, steps=5))
    assert sum(len(dropped) for _, dropped in found) >= 2
    for (local, local_dropped), (batch, dropped) in zip(expected, found, strict=True):
        assert same(arrays(local), arrays(batch)) and dropped == local_dropped

    # Two in eight are too many where one in ten may fail.
    strict = CONFIG.model_copy(update={"max_dropped_ratio": 0.1})
    with pytest.raises(DroppedTooManyError, match=r"max_dropped_ratio=0\.1.*but 2 of 8 are.*\n.*6\.mp4: is empty"):
        list(stream(manifest, range(CLIPS), read, strict, seed=1, batch_size=4, steps=5))
    with pytest.raises(DroppedTooManyError, match=r"this one has none.*\n.*6\.mp4: is empty"):
        list(stream(manifest, [6], read, tolerant, seed=1, batch_size=4, steps=5))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluation_holds_the_local_views_and_fails_listing_every_clip_it_cannot_read(
    manifest: Manifest, read: ReadConfig
) -> None:
    expected = [arrays(batch) for batch in local_views(manifest, range(CLIPS), 4, read)]
    found = [arrays(batch) for batch in evaluation_views(manifest, range(CLIPS), read, CONFIG, batch_size=4)]
    assert len(expected) == len(found) and all(map(same, expected, found))

    for broken in ("6.mp4", "5/00001.jpg"):
        Path(manifest.root, broken).write_bytes(b"")
    seen = []
    with pytest.raises(EvaluationDecodeError, match=r"2 are not.*\n.*00001\.jpg is empty.*\n.*6\.mp4: is empty"):
        for batch in evaluation_views(manifest, range(CLIPS), read, CONFIG, batch_size=4):
            seen += batch["row"].tolist()
    assert seen == sorted(seen) and max(seen) < 5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_studys_files_are_mapped_not_copied_and_give_the_same_clips(
    manifest: Manifest, read: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mien.data_pipelines.clips.CHUNK_ROWS", 2)
    rows = [6, 0, 3]
    expected = [arrays(batch) for batch, _ in local_batches(manifest, rows, 2, 0, read, steps=3)]
    handle = share(manifest, rows, manifest.root, task_cpus=0.5)
    sources: Any = shared(handle)
    assert len(handle.chunks) == 2
    # Read-only is what memory mapped from the object store is.
    assert all(not part.flags.writeable for row in rows for part in sources.source(row).parts)
    for number in rows[1:]:
        for file in Path(manifest.root, str(number)).iterdir():
            file.unlink()
    found = [arrays(b) for b, _ in local_batches(manifest, rows, 2, 0, read, steps=3, sources=sources)]
    assert all(map(same, expected, found))


@pytest.fixture
def hog() -> Iterator[None]:
    """Hold every CPU of the cluster, as training workers might."""
    group = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(group.ready(), timeout=60)
    yield
    ray.util.remove_placement_group(group)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "hog")
def test_a_stream_that_finds_no_cpu_says_so_instead_of_waiting(manifest: Manifest, read: ReadConfig) -> None:
    impatient = CONFIG.model_copy(update={"stall_seconds": 3})
    began = time.monotonic()
    with pytest.raises(StalledError, match=r"0 of the cluster's 4 are free now.*trainer\.cpus_per_worker"):
        next(stream(manifest, range(3), read, impatient, seed=0, batch_size=2, steps=4))
    with pytest.raises(StalledError, match=r"study\.cpus_per_trial"):
        share(manifest, range(3), manifest.root, stall_seconds=1)
    assert time.monotonic() - began < 30


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_stream_that_is_left_early_stops_working(manifest: Manifest, read: ReadConfig) -> None:
    batches = stream(manifest, range(3), read, CONFIG, seed=0, batch_size=2, steps=10_000)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 4 and time.monotonic() < until:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 4


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_batches_larger_than_a_segments_blocks_are_whole(manifest: Manifest, read: ReadConfig) -> None:
    expected = [arrays(batch) for batch, _ in local_batches(manifest, range(CLIPS), 9, 3, read, steps=3)]
    found = [arrays(batch) for batch, _ in stream(manifest, range(CLIPS), read, CONFIG, seed=3, batch_size=9, steps=3)]
    assert len(found) == 3 and all(map(same, expected, found))  # three blocks each, two to a segment


class Deadly(Manifest):
    """A manifest of which two rows end the process that reads them, as a decoder might."""

    def row(self, index: int) -> dict[str, Any]:
        return End() if index in (2, 5) else super().row(index)


class End(dict[str, Any]):
    def __getitem__(self, name: str) -> Any:
        if name == "frames":
            os.abort()
        return {"path": "deadly.mp4", "video": "deadly"}[name]


def test_every_reading_notes_its_deaths_under_a_name_of_its_own(
    manifest: Manifest, read: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    class Put(Exception):
        pass

    def put(value: tuple[str, Any, Any]) -> None:  # as in a cluster of its own each time: no ids tell them apart
        names.append(value[0])
        raise Put

    monkeypatch.setattr(ray, "put", put)
    for _ in range(2):
        for reading in (
            stream(manifest, range(CLIPS), read, CONFIG, seed=1, batch_size=7, steps=1),
            evaluation_views(manifest, range(CLIPS), read, CONFIG, batch_size=4),
            video_frames(manifest, range(CLIPS), read, CONFIG),
        ):
            with pytest.raises(Put):
                next(reading)
    assert len(set(names)) == 6


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_clips_that_end_the_process_of_their_task_are_dropped_with_a_reason(
    manifest: Manifest, read: ReadConfig
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    deadly = Deadly(**vars(manifest))
    tolerant = CONFIG.model_copy(update={"max_dropped_ratio": 0.5})
    expected = [arrays(batch) for batch, _ in local_batches(manifest, range(CLIPS), 7, 1, read, steps=1)]
    found = list(stream(deadly, range(CLIPS), read, tolerant, seed=1, batch_size=7, steps=1))
    ((batch, dropped),) = found
    assert sorted(clip["row"] for clip in dropped) == [2, 5]
    assert {clip["reason"] for clip in dropped} == {"ended the process that read it, or hung, 2 times: it is given up"}
    kept = ~np.isin(expected[0]["row"], (2, 5))
    assert same({name: values[kept] for name, values in expected[0].items()}, arrays(batch))

    with pytest.raises(EvaluationDecodeError, match=r"2 are not") as caught:
        list(evaluation_views(deadly, range(CLIPS), read, CONFIG, batch_size=4))
    assert [Path(failure.path).name for failure in caught.value.failures] == ["deadly.mp4"] * 2


@pytest.mark.ray
def test_several_clips_of_a_video_come_together_and_an_unreadable_one_is_left_out(
    manifest: Manifest, ray_cluster: None
) -> None:
    sampling = SamplingConfig(rule="pretrain", frames=4, stride=1, num_samples=2)
    read = ReadConfig(sampling=sampling, augment=AugmentConfig(kind="pretrain"), size=32, root=manifest.root)
    for frame in (Path(manifest.root) / "3").iterdir():
        frame.write_bytes(b"")
    settings = CONFIG.model_copy(update={"dropped_after": 100})
    streamed = list(stream(manifest, range(CLIPS), read, settings, seed=0, batch_size=CLIPS, steps=1))
    ((local, dropped),) = local_batches(manifest, range(CLIPS), CLIPS, 0, read, steps=1)
    assert same(arrays(streamed[0][0]), local) and local["clip"].shape == (CLIPS - 1, 8, 32, 32, 3)
    assert [one["row"] for one in streamed[0][1]] == [one["row"] for one in dropped] == [3]
    views = list(evaluation_views(manifest, [0, 1], read, CONFIG, batch_size=4))
    assert views[0]["clip"].shape[1] == 4
