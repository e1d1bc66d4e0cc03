"""Windows show every frame of a clip, each read once; frames come the same with and without Ray, in any blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mien.data_pipelines import annotation_files, decode, frame_annotations
from mien.data_pipelines.blocks import StreamConfig
from mien.data_pipelines.clips import video_frames
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.reading import ReadConfig, read_frames
from mien.data_pipelines.sampling import SamplingConfig, ending_indices, view_indices
from mien.data_pipelines.unreadable import Dropped
from mien.data_pipelines.windows import FrameLine, cut, endings, local_frames, windows

LENGTHS = (1, 3, 4, 9, 14)  # of clips, in windows of 4 frames


@pytest.mark.parametrize("num_frames", [1, 2, 5, 15, 16, 17, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("hop", [1, 4, 16])
def test_windows_show_every_frame_in_steps_of_the_stride(num_frames: int, stride: int, hop: int) -> None:
    found = windows(num_frames, 16, hop, stride)
    assert set(found.ravel().tolist()) == set(range(num_frames))
    steps = np.diff(found, axis=1)
    # Only at the end of a phase that is shorter than a window does a frame come again.
    assert np.isin(steps, (0, stride)).all()
    assert all((steps[row] == stride).all() for row in range(len(found)) if num_frames >= 16 * stride)
    assert (np.diff(found[:, -1]) >= 0).all() and found[-1, -1] == num_frames - 1


def test_the_last_window_ends_with_the_clip_and_no_window_comes_twice() -> None:
    assert windows(10, 4, 3)[:, 0].tolist() == [0, 3, 6]
    assert windows(11, 4, 3)[:, 0].tolist() == [0, 3, 6, 7]
    assert windows(3, 4, 2).tolist() == [[0, 1, 2, 2]]
    # Seven frames every other one: 0 2 4 6 and 1 3 5.
    assert windows(7, 3, 3, stride=2).tolist() == [[0, 2, 4], [1, 3, 5], [2, 4, 6]]


def test_windows_hold_what_evaluation_shows() -> None:
    for num_frames in (5, 16, 40, 90):
        found = windows(num_frames, 16, 1, stride=4).tolist()
        for view in view_indices(num_frames, SamplingConfig(frames=16, stride=4)):
            assert view.tolist() in found
    for last in range(9):
        assert endings(9, 4)[last].tolist() == ending_indices(last + 1, SamplingConfig(frames=4)).tolist()


def test_pieces_of_the_line_are_the_clips_frames() -> None:
    line = FrameLine(np.array([7, 2, 5]), np.array([3, 4, 9]))
    assert list(line.pieces(0, 9)) == [(7, 0, 3), (2, 0, 1), (5, 0, 5)]
    assert list(line.pieces(1, 3)) == [(7, 1, 3)]
    assert list(line.pieces(3, 6)) == [(2, 0, 1), (5, 0, 2)]
    assert list(line.pieces(6, 9)) == [(5, 2, 5)]


@pytest.fixture
def manifest(tmp_path: Path, make_frames: Callable[..., Path], make_video: Callable[..., Path]) -> Manifest:
    """Return clips of 1, 3, 4 and 9 images, the last from its folder's third on, and a video of 14 frames."""
    starts = [2 if length == 9 else 0 for length in LENGTHS]
    for number, length in enumerate(LENGTHS[:-1]):
        make_frames(tmp_path / f"clip {number}", frames=length + starts[number])
    make_video(tmp_path / "clip 4.mp4", frames=LENGTHS[-1])
    paths = [*(f"clip {number}" for number in range(4)), "clip 4.mp4"]
    rows = [
        {"video": f"a/{path}", "path": path, "dataset": "toy", "start": start, "frames": length, "label": label}
        | {"height": 48, "width": 64}
        for path, start, length, label in zip(paths, starts, LENGTHS, (0, None, 1, 0, 1), strict=True)
    ]
    return build(rows, ("x", "y"), tmp_path, "toy")


@pytest.fixture
def read(manifest: Manifest) -> ReadConfig:
    return ReadConfig(sampling=SamplingConfig(frames=4), size=48, root=manifest.root)


def cuts(manifest: Manifest, read: ReadConfig, stream: Any, batch_size: int = 3) -> tuple[list[Any], list[Dropped]]:
    """Return (row, frames, clip) of every window, and the clips that were reported."""
    lost: list[Dropped] = []
    lengths = manifest.column("frames")
    batches = list(cut(stream, lambda row: windows(lengths[row], 4, 2), batch_size, lost.append))
    assert all(len(batch["row"]) == batch_size for batch in batches[:-1])
    keys = ("row", "frames", "clip")
    return [item for batch in batches for item in zip(*(batch[key] for key in keys), strict=True)], lost


@pytest.mark.parametrize("batch_frames", [1, 5, 100])
def test_windows_are_cut_from_a_stream_of_any_batches(
    manifest: Manifest, read: ReadConfig, which: Callable[[np.ndarray], list[int]], batch_frames: int
) -> None:
    rows = np.array([4, 0, 1, 3, 2])
    found, lost = cuts(manifest, read, local_frames(manifest, rows, read, batch_frames))
    assert lost == []
    planned = [(row, window) for row in rows for window in windows(LENGTHS[row], 4, 2).tolist()]
    assert [(row, frames.tolist()) for row, frames, _ in found] == planned
    for row, frames, clip in found:
        assert which(clip) == (frames + (2 if row == 3 else 0)).tolist()
        assert (clip[..., :24, 0] > 200).all()  # red is the first channel


def test_a_clip_that_breaks_off_is_reported_once_and_shown_no_further(manifest: Manifest, read: ReadConfig) -> None:
    Path(manifest.root, "clip 3", "00009.jpg").write_bytes(b"")
    found, lost = cuts(manifest, read, local_frames(manifest, np.arange(5), read, 2))
    assert [clip["row"] for clip in lost] == [3] and "00009.jpg is empty" in lost[0]["reason"]
    assert [frames.tolist() for row, frames, _ in found if row == 3] == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert all(clip.any() for _, _, clip in found)  # and nothing black in its place
    assert [row for row, _, _ in found if row > 3] == [4] * 6


def test_a_clip_too_large_for_memory_is_read_frame_by_frame(
    manifest: Manifest, read: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, row = read_frames(manifest.row(4), 1, 14, read), manifest.row(4)
    monkeypatch.setattr("mien.data_pipelines.video_files.MAX_BYTES", 3 * row["height"] * row["width"] * 3)
    with pytest.raises(DecodeError, match=r"13 frames of 64x48 .* not read"):
        decode.read(Path(manifest.root, row["path"]), np.arange(1, 14))
    monkeypatch.setattr("mien.data_pipelines.video_files.MAX_BYTES", whole.nbytes)  # of the small ones, resized
    assert np.array_equal(read_frames(row, 1, 14, read), whole) and len(whole) == 13


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_frames_through_ray_are_the_local_ones(manifest: Manifest, read: ReadConfig) -> None:
    Path(manifest.root, "clip 2", "00001.jpg").unlink()
    rows = np.array([3, 2, 4, 1])
    config = StreamConfig(block_clips=1, segment_blocks=2, task_cpus=0.5, stall_seconds=60)  # 4 frames a block
    found = list(video_frames(manifest, rows, read, config))
    expected = list(local_frames(manifest, rows, read, 4))
    assert len(found) == len(expected) == 8
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_annotation_files_of_frames_are_read_back(manifest: Manifest, tmp_path: Path) -> None:
    rows = np.repeat([2, 3, 4], [4, 9, 14])
    angles = np.random.default_rng(0).uniform(-1, 1, (len(rows), 2)).astype(np.float32)
    table = pa.table({"row": rows, "pitch": angles[:, 0], "yaw": angles[:, 1]})
    frame_annotations.write(tmp_path / "csv", manifest, [table.slice(0, 4), table.slice(4)])
    records, kind = annotation_files.read_records([tmp_path / "csv" / "merged.csv"], "label_angles")
    assert kind == "label_angles" and len(records) == len(rows)
    assert [records[0].path, records[4].path, records[-1].path] == [
        "clip 2/00001.jpg", "clip 3/00003.jpg", "clip 4.mp4#13"
    ]  # fmt: skip
    assert (tmp_path / records[4].path).is_file()
    assert [record.label for record in records[:5]] == [1, 1, 1, 1, 0]
    assert np.allclose([(record.pitch, record.yaw) for record in records], angles, atol=1e-6)
    names = sorted(path.name for path in (tmp_path / "csv" / "videos").iterdir())
    assert names == ["a%2Fclip%202.csv", "a%2Fclip%203.csv", "a%2Fclip%204.mp4.csv"]
    one, _ = annotation_files.read_records([tmp_path / "csv" / "videos" / names[1]], "label_angles")
    assert [record.path for record in one] == [record.path for record in records[4:13]]
