"""Every source gives the frames asked for, in RGB, or says why it cannot."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.data_pipelines import decode
from mien.data_pipelines.decode import DecodeError, frame_size, load, pack, probe, read

Make = Callable[..., Path]
Which = Callable[[np.ndarray], list[int]]
SUFFIXES = [".mp4", ".avi", ".mkv", ".ts"]  # mp4 from its keyframes on, the others in order


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_video_gives_the_frames_asked_for(tmp_path: Path, make_video: Make, which: Which, suffix: str) -> None:
    path = make_video(tmp_path / f"clip{suffix}")
    frames, fps, height, width = probe(path)
    assert (frames, height, width) == (40, 48, 64)
    assert fps == pytest.approx(25)
    indices = [3, 0, 17, 17, 39, 38]
    clip = read(path, indices)
    assert clip.dtype == np.uint8 and clip.shape == (6, 48, 64, 3)
    assert which(clip) == indices
    # Red, the first channel, marks the left half.
    assert clip[..., :28, 0].min() > 200


def test_a_folder_gives_the_frames_asked_for(tmp_path: Path, make_frames: Make, which: Which) -> None:
    folder = make_frames(tmp_path / "clip")
    assert probe(folder) == (40, None, 48, 64)
    indices = [3, 0, 17, 17, 39, 38]
    clip = read(folder, indices)
    assert which(clip) == indices
    assert clip[..., :28, 0].min() > 200


def test_unpadded_frame_names_are_read_in_the_order_of_their_numbers(
    tmp_path: Path, make_frames: Make, which: Which
) -> None:
    folder = make_frames(tmp_path / "clip", frames=21, name="{}.jpg")
    assert which(read(folder, range(21))) == list(range(21))


def test_a_path_with_spaces_and_other_letters_is_read(tmp_path: Path, make_video: Make, make_frames: Make) -> None:
    folder = tmp_path / "ein Ordner, 表情"
    assert len(read(make_frames(folder / "clip 1", frames=2), [1])) == 1
    assert len(read(make_video(folder / "clip 1.mp4", frames=2), [1])) == 1


def test_one_image_is_a_video_of_one_frame(tmp_path: Path, make_frames: Make) -> None:
    image = make_frames(tmp_path / "clip", frames=1) / "00001.jpg"
    assert probe(image).frames == 1
    assert read(image, [0] * 16).shape == (16, 48, 64, 3)


def test_a_video_of_one_frame_is_read(tmp_path: Path, make_video: Make, which: Which) -> None:
    path = make_video(tmp_path / "one.mp4", frames=1)
    assert probe(path).frames == 1
    assert which(read(path, [0] * 16)) == [0] * 16


@pytest.mark.parametrize("kind", ["folder", "image", *SUFFIXES])
def test_loaded_and_packed_sources_give_what_their_files_give(
    tmp_path: Path, make_video: Make, make_frames: Make, kind: str
) -> None:
    folder = make_frames(tmp_path / "frames")
    if kind in SUFFIXES:
        path = make_video(tmp_path / f"clip{kind}")
    else:
        path = folder if kind == "folder" else folder / "00007.jpg"
    indices = [0, 0] if kind == "image" else [5, 30]
    packed = pack([load(folder, 2, 5), load(path), load(folder)])
    expected = read(path, indices)
    assert np.array_equal(read(load(path), indices), expected)
    assert np.array_equal(read(packed.source(1), indices), expected)
    # A source is a view: nothing is copied until it is decoded.
    assert all(np.shares_memory(part, packed.data) for part in packed.source(1).parts)
    # A stretch of a folder keeps its frames' numbers.
    assert np.array_equal(read(packed.source(0), [2, 6]), read(folder, [2, 6]))


def test_frames_of_two_sizes_are_refused_by_name(tmp_path: Path, make_frames: Make) -> None:
    folder = make_frames(tmp_path / "clip", frames=3)
    make_frames(folder, frames=1, height=50, width=70, first=4)
    for look in (lambda: read(folder, [0, 3]), lambda: probe(folder), lambda: read(load(folder), [0, 3])):
        with pytest.raises(DecodeError, match=r"one size.*64x48.*70x50"):
            look()


def test_frames_of_two_sizes_are_brought_to_the_one_that_is_asked_for(tmp_path: Path, make_frames: Make) -> None:
    folder = make_frames(tmp_path / "clip", frames=3)
    make_frames(folder, frames=1, height=96, width=128, first=4)
    for source in (folder, load(folder)):
        for size in ((48, 64), (96, 128), (30, 90)):
            assert read(source, [0, 3], size).shape == (2, *size, 3)
        # A frame that has the size is as it was, and so is a larger one of the same picture but for its edges.
        assert np.array_equal(read(source, [0, 3], (48, 64))[0], read(source, [0])[0])
    assert np.abs(read(folder, [0, 3], (48, 64)).astype(int)[1] - read(folder, [0])[0])[:, 40:].max() <= 2


@pytest.mark.parametrize("name", ["{:05d}.jpg", "{:05d}.png", "{:05d}.bmp", "{:05d}.webp"])
def test_the_size_of_an_image_is_known_without_its_picture(tmp_path: Path, make_frames: Make, name: str) -> None:
    image = make_frames(tmp_path, frames=1, height=48, width=66, name=name) / name.format(1)
    assert frame_size(image) == (48, 66)
    image.write_bytes(b"")
    with pytest.raises(DecodeError, match="is empty"):
        frame_size(image)


@pytest.mark.parametrize("name", ["{:05d}.jpg", "{:05d}.png", "{:05d}.bmp", "{:05d}.webp"])
def test_an_odd_frame_in_the_middle_is_found_when_prepared(tmp_path: Path, make_frames: Make, name: str) -> None:
    folder = make_frames(tmp_path / "clip", frames=9, name=name)
    assert probe(folder) == (9, None, 48, 64)
    make_frames(folder, frames=1, height=48, width=66, first=5, name=name)
    with pytest.raises(DecodeError, match=rf"one size.*64x48.*{name.format(5)} is 66x48"):
        probe(folder)
    (folder / name.format(5)).write_bytes(b"")
    with pytest.raises(DecodeError, match=rf"{name.format(5)} is empty"):
        probe(folder)
    (folder / name.format(5)).write_text("not a picture")
    with pytest.raises(DecodeError, match=rf"{name.format(5)} is not an image"):
        probe(folder)


def test_frames_that_say_their_size_in_other_ways_are_still_one_clip(tmp_path: Path, make_frames: Make) -> None:
    # A progressive JPEG, one with a comment before its size, a PNG under a JPEG's name, and one with no header we read.
    folder = make_frames(tmp_path / "clip", frames=8)
    picture = cv2.imread(str(folder / "00001.jpg"))
    cv2.imwrite(str(folder / "00003.jpg"), picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    jpeg = (folder / "00004.jpg").read_bytes()
    (folder / "00004.jpg").write_bytes(jpeg[:2] + b"\xff\xfe\x00\x0c" + b"\xff\xc0 a note" + b"\x00" + jpeg[2:])
    for number, suffix in ((5, ".png"), (6, ".webp")):
        (folder / f"0000{number}.jpg").write_bytes(cv2.imencode(suffix, picture)[1].tobytes())
    assert probe(folder) == (8, None, 48, 64)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.02, 0.05, 0.1])
def test_a_frame_cut_off_in_its_header_does_not_hide(tmp_path: Path, make_frames: Make, share: float) -> None:
    folder = make_frames(tmp_path / "clip", frames=3, height=480, width=640)
    content = (folder / "00002.jpg").read_bytes()
    (folder / "00002.jpg").write_bytes(content[: int(share * len(content))][:150])
    with pytest.raises(DecodeError, match=r"00002\.jpg"):
        probe(folder)


def test_a_folder_without_frames_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no frames here")
    with pytest.raises(DecodeError, match="must hold images"):
        probe(tmp_path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.jpg"])
def test_missing_empty_and_renamed_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DecodeError, match="No such file"):
        probe(path)
    path.touch()
    with pytest.raises(DecodeError, match="empty"):
        probe(path)
    path.write_text("This is a text, whatever its name says.\n" * 50)
    with pytest.raises(DecodeError, match=r"is not an mp4|cannot be decoded|not an image") as caught:
        probe(path)
    assert caught.value.path == str(path)


def test_an_empty_frame_is_refused_by_name(tmp_path: Path, make_frames: Make) -> None:
    folder = make_frames(tmp_path / "clip", frames=3)
    (folder / "00002.jpg").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"00002\.jpg is empty"):
        read(folder, [0, 1, 2])


@pytest.mark.parametrize("share", [0.97, 0.7, 0.4, 0.1, 0.005])
@pytest.mark.parametrize("index_first", [True, False])
def test_a_truncated_mp4_is_refused(tmp_path: Path, make_video: Make, share: float, index_first: bool) -> None:
    path = make_video(tmp_path / "clip.mp4", **({"movflags": "faststart"} if index_first else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DecodeError, match=r"truncated|not an mp4"):
        probe(path)
    with pytest.raises(DecodeError):
        read(load(path), [0])


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.01])
@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".ts"])
def test_another_truncated_container_gives_the_frames_before_the_cut_or_an_error(
    tmp_path: Path, make_video: Make, which: Which, suffix: str, share: float
) -> None:
    path = make_video(tmp_path / f"clip{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    try:
        frames = probe(path).frames
    except DecodeError:
        return
    # Frames just before the cut may lack one that is shown before them and stored behind them.
    assert which(read(path, range(frames)))[:-3] == list(range(frames))[:-3]


@pytest.mark.parametrize("suffix", ["", ".mp4", ".avi"])
def test_frames_beyond_the_end_are_an_error(tmp_path: Path, make_video: Make, make_frames: Make, suffix: str) -> None:
    path = (make_video if suffix else make_frames)(tmp_path / f"clip{suffix}", frames=10)
    for source in (path, load(path)):
        with pytest.raises(DecodeError, match="holds 10 frames, but frame 10"):
            read(source, [9, 10])


def test_natural_order_of_names() -> None:
    names = ["10.jpg", "a2b10", "2.jpg", "a2b9", "a10", "1.jpg"]
    assert sorted(names, key=decode.natural) == ["1.jpg", "2.jpg", "10.jpg", "a2b9", "a2b10", "a10"]
