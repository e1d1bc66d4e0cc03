"""Raw footage to upright frames at a constant rate: phones, wavering rates, gaps, and files that are damaged."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.footage import Footage

Make = Callable[..., Path]
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise turn for display: a, b, c, d


def written(path: Path, milliseconds: list[int]) -> Path:
    """Write a video whose frames get brighter by 5, shown at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 5 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(footage: Footage) -> list[int]:
    return [round((float(frame.rgb().mean()) - 20) / 5) for frame in footage.frames()]


def turned(path: Path, degrees: int) -> Path:
    """Write the display matrix of a phone that was held otherwise into an mp4's track header."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * 65536 for value in MATRICES[degrees])
    # 4 bytes of kind, then version 0: flags, times, track and so on, 40 bytes, before the matrix.
    place = content.index(b"tkhd") + 4 + 40
    values = (a, b, 0, c, d, 0, 0, 0, 2**30)
    content[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(content)
    return path


def test_frames_at_a_constant_rate_are_the_videos_own(
    make_video: Make, which: Callable[[np.ndarray], list[int]], tmp_path: Path
) -> None:
    for name in ("a.mp4", "a.mkv", "a.avi", "a.ts"):
        footage = Footage(make_video(tmp_path / name, frames=40))
        frames = list(footage.frames())
        assert which(np.stack([frame.rgb() for frame in frames])) == list(range(40)), name
        assert [frame.index for frame in frames] == list(range(40))
        assert footage.expected == pytest.approx(40, abs=2), name
        assert footage.fps == pytest.approx(25, rel=0.03) and footage.notes == {}, name


def test_folders_of_frames_and_images_are_footage_too(make_frames: Make, tmp_path: Path) -> None:
    folder = make_frames(tmp_path / "frames", frames=12)
    (folder / "00003.jpg").write_bytes(b"")
    footage = Footage(folder)
    assert len(list(footage.frames())) == 11
    assert footage.notes["damaged images"] == 1 and "00003.jpg" in str(footage.notes["first damage"])
    assert len(list(Footage(folder / "00001.jpg").frames())) == 1


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_video_is_turned_upright(degrees: int, make_video: Make, tmp_path: Path) -> None:
    frame = next(Footage(turned(make_video(tmp_path / "phone.mp4"), degrees)).frames())
    upright = frame.rgb()
    # The stored frame is red in its left half; turning it clockwise brings the left to the top.
    half = {90: np.s_[:28], 180: np.s_[:, 36:], 270: np.s_[36:]}[degrees]
    assert upright.shape[:2] == frame.size == ((48, 64) if degrees == 180 else (64, 48))
    assert upright[half][..., 0].mean() > 230 and np.median(upright[..., 0]) > 20
    assert frame.rgb(longest=32).shape[:2] == ((24, 32) if degrees == 180 else (32, 24))


def test_a_wavering_rate_is_brought_to_a_grid(tmp_path: Path) -> None:
    # 25 frames/s in all. Times decide, so that speech keeps its speed: place 5 (200 ms) repeats what was shown then.
    footage = Footage(written(tmp_path / "phone.mp4", [0, 40, 70, 120, 160, 240, 250, 280, 320]), fps=25)
    assert shown(footage) == [0, 1, 2, 3, 4, 4, 5, 7, 8]
    assert footage.notes == {"frames repeated": 1, "frames too many": 1}


def test_the_wanted_rate_decides_how_many_frames_there_are(tmp_path: Path) -> None:
    video = written(tmp_path / "a.mp4", [40 * index for index in range(20)])
    assert shown(Footage(video, fps=12.5)) == list(range(0, 20, 2))
    assert len(shown(Footage(video, fps=50))) == 39


def test_missing_time_is_a_jump_and_is_not_filled(tmp_path: Path) -> None:
    footage = Footage(written(tmp_path / "a.mp4", [0, 40, 80, 10_000, 10_040]), fps=25)
    assert [(frame.index, frame.jump) for frame in footage.frames()] == [
        (0, False), (1, False), (2, False), (3, True), (4, False),
    ]  # fmt: skip
    assert footage.notes == {"jumps in time": 1}


def test_of_a_truncated_video_the_frames_before_the_cut_are_there(make_video: Make, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", frames=200, movflags="faststart")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 2 // 3])
    footage = Footage(video)
    assert 60 < len(list(footage.frames())) < 180
    assert "of the 200 frames" in str(footage.notes["ends early"])


def test_damage_in_the_middle_is_passed_over_and_counted(make_video: Make, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", frames=200, movflags="faststart")
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    video.write_bytes(content)
    footage = Footage(video)
    assert len(list(footage.frames())) > 150
    assert footage.notes


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.mp4", b"", "is empty"),
        ("a.mp4", b"\0" * 5000, "cannot be opened as a video"),
        ("a.mkv", bytes(range(256)) * 20, "cannot be opened as a video"),
        ("a.mp4", None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_video_is_said(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError, match=reason):
        next(Footage(tmp_path / name).frames())


def test_an_unknown_codec_is_said(make_video: Make, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mkv")
    video.write_bytes(video.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_XXXXX/ISO/XXX"))
    with pytest.raises(DecodeError, match="codec FFmpeg does not know"):
        next(Footage(video).frames())


def test_reading_twice_gives_the_same_frames(tmp_path: Path) -> None:
    footage = Footage(written(tmp_path / "a.mp4", [0, 40, 60, 120, 160, 240, 280, 320]))
    assert shown(footage) == shown(footage)


def test_a_frame_knows_its_time_on_the_sources_clock(make_frames: Make, tmp_path: Path) -> None:
    # Held for a while, then nothing for five seconds: a grid's place and the clock part company there.
    shown_at = [0, 40, 80, 200, 240, 5240, 5280]
    footage = Footage(written(tmp_path / "a.mp4", shown_at), fps=25)
    times = [(frame.index, round(1000 * frame.time)) for frame in footage.frames()]
    assert times == list(enumerate([0, 40, 80, 120, 160, 200, 240, 5240, 5280]))
    folder = Footage(make_frames(tmp_path / "frames", frames=3), fps=10)
    assert [frame.time for frame in folder.frames()] == pytest.approx([0, 0.1, 0.2])
