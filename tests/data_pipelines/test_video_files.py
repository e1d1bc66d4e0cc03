"""A video gives the same frames however they are asked for, upright; what its header claims takes no memory or time."""

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mien.data_pipelines import video_files
from mien.data_pipelines.video_files import DecodeError, Probe, probe_video, read_video

Make = Callable[..., Path]


def textured(
    path: Path,
    codec: str,
    options: dict[str, str],
    times: list[int] | None = None,
    frames: int = 60,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write moving noise, so that a frame decoded from a wrong one looks wrong; `times` in milliseconds."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64 + frames, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, index : index + 64]), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


KINDS: dict[str, tuple[str, dict[str, str], bool]] = {
    "keyframes far apart, many B-frames": ("libx264", {"bf": "8", "g": "250", "b-pyramid": "normal"}, False),
    "keyframes near, B-frames": ("libx264", {"bf": "3", "g": "12"}, False),
    "open groups": ("libx264", {"x264-params": "open-gop=1:keyint=20:bframes=4:b-pyramid=normal"}, False),
    "keyframes only": ("libx264", {"g": "1"}, False),
    "a wavering rate": ("libx264", {"bf": "4", "g": "15"}, True),
    "MPEG-4 with B-frames": ("mpeg4", {"bf": "2", "g": "12"}, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_frames_are_those_of_reading_all_in_order(tmp_path: Path, kind: str, suffix: str) -> None:
    codec, options, wavers = KINDS[kind]
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.integers(10, 90, 60)).tolist() if wavers else None
    path = textured(tmp_path / f"clip{suffix}", codec, options, times)
    with av.open(str(path)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert probe_video(str(path))[0] == len(every) == 60
    for turn in range(12):
        wanted = np.unique(rng.integers(0, 60, int(rng.integers(1, 17))))
        found = read_video(str(path), path.read_bytes() if turn % 2 else None, wanted)
        assert np.array_equal(found, every[wanted]), wanted


@pytest.mark.parametrize("muxer", [{"use_editlist": "0"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"x264-params": "open-gop=1:keyint=2:bframes=1:b-adapt=0"}), ("mpeg4", {"bf": "2", "g": "2"})],
)
def test_frames_are_found_where_a_later_keyframe_is_decoded_before_the_one_asked_for_is_due(
    tmp_path: Path, codec: str, options: dict[str, str], muxer: dict[str, str]
) -> None:
    path = textured(tmp_path / "clip.mp4", codec, options, frames=30, muxer=muxer)
    with av.open(str(path)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert probe_video(str(path))[0] == len(every) == 30
    for number in range(30):
        assert np.array_equal(read_video(str(path), None, np.array([number]))[0], every[number]), number


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_video_that_lies_on_its_side_is_turned_upright(tmp_path: Path, make_video: Make, turns: int) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=3)
    plain = read_video(str(path), None, np.arange(3))
    content = bytearray(path.read_bytes())
    cosine, sine = [(1, 0), (0, -1), (-1, 0), (0, 1)][turns]
    matrix = [value << 16 for value in (cosine, sine, 0, -sine, cosine, 0, 0, 0)] + [1 << 30]
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    turned = read_video(str(path), None, np.arange(3))
    assert np.array_equal(turned, np.rot90(plain, turns, axes=(1, 2)))
    assert probe_video(str(path)) == Probe(3, 25.0, *turned.shape[1:3])


def test_a_pipe_and_a_folder_are_no_videos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # to open it would wait for ever
    (tmp_path / "folder.avi").mkdir()
    for name in ("pipe.mp4", "folder.avi"):
        with pytest.raises(DecodeError, match="is not a file"):
            probe_video(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".ts", ".avi", ".mkv"])
def test_a_playlist_is_not_followed(tmp_path: Path, make_video: Make, suffix: str) -> None:
    other = make_video(tmp_path / "private.ts")
    playlist = tmp_path / f"list{suffix}"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{other.as_uri()}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
    ):
        playlist.write_text(text)
        with pytest.raises(DecodeError, match="cannot be decoded"):
            probe_video(str(playlist))


def test_a_huge_picture_is_refused_before_there_is_memory_for_it(tmp_path: Path, make_video: Make) -> None:
    content = bytearray(make_video(tmp_path / "clip.mp4").read_bytes())
    place = content.index(b"avc1") + 28
    content[place : place + 4] = struct.pack(">HH", 65000, 65000)
    path = tmp_path / "huge.mp4"
    path.write_bytes(content)
    try:  # the stream's own header, which is right, may win
        assert probe_video(str(path))[2:] == (48, 64)
    except DecodeError as error:
        assert "65000x65000; more than 67,108,864 pixels are not" in error.reason
    with pytest.raises(DecodeError, match=r"100000x1000; more than"):
        video_files.check_size("a", 1000, 100_000)
    with pytest.raises(DecodeError, match=r"64 frames of 4000x4000 are 2\.9 GiB.*make them smaller"):
        video_files.check_size("a", 4000, 4000, 64)


def test_a_file_that_takes_too_long_is_given_up(
    tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "clip.avi", frames=200)
    monkeypatch.setattr(video_files, "SECONDS", -1.0)
    with pytest.raises(DecodeError, match="takes longer than -1 s"):
        probe_video(str(path))
