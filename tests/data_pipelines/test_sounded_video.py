"""The annotated video's file: players open it, and a flash stays beside its beep, whatever the source was."""

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mien.data_pipelines.footage import Footage
from mien.data_pipelines.sounded_video import SoundedVideo

RATE = 44100
FLASH = 1.0  # seconds, for 0.3 s


def recorded(path: Path, sound: str | None, offset: float = 0.0, rate: int = RATE) -> Path:
    """Write two seconds at a wavering rate, bright while a tone is heard; times begin with `offset`."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30, options={"threads": "1", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(sound, rate=rate, layout="mono") if sound else None
        time, heard = 0.0, 0
        tone = 0.5 * np.sin(2 * np.pi * 880 * np.arange(2 * rate) / rate)
        tone[: int(FLASH * rate)] = tone[int((FLASH + 0.3) * rate) :] = 0
        samples = (32767 * tone).astype(np.int16)
        while time < 2:
            grey = 230 if FLASH <= time < FLASH + 0.3 else 20
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (time + offset)), Fraction(1, 1000)
            container.mux(video.encode(frame))
            time += rng.uniform(0.015, 0.06)
            while audio and heard < min(len(samples), (time + 0.2) * rate):
                part = av.AudioFrame.from_ndarray(samples[None, heard : heard + 1024], format="s16", layout="mono")
                part.sample_rate, part.time_base = rate, Fraction(1, rate)
                part.pts = heard + round(offset * rate)
                container.mux(audio.encode(part))
                heard += 1024
        container.mux(video.encode())
        if audio:
            container.mux(audio.encode())
    return path


def copied(source: Path, output: Path) -> SoundedVideo:
    footage = Footage(source)
    video: SoundedVideo | None = None
    for frame in footage.frames():
        video = video or SoundedVideo(output, (48, 64), footage.fps, source)
        video.add(frame.rgb(), frame.time)
    assert video is not None
    video.close()
    return video


def flash(path: Path) -> float:
    with av.open(str(path)) as container:
        return next(f.time or 0.0 for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 120)


def beep(path: Path) -> float:
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().astype(np.float32)).ravel() > 0.2)
            if len(loud):
                return (frame.time or 0.0) + float(loud[0]) / frame.sample_rate
    raise AssertionError("nothing is heard")


def test_a_name_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path / "a.mp4", "aac").rename("10:30.mp4")
    assert not copied(Path("10:30.mp4"), Path("shown:10:30.mp4")).notes
    assert abs(flash(tmp_path / "shown:10:30.mp4") - beep(tmp_path / "shown:10:30.mp4")) < 0.06


@pytest.mark.parametrize(
    ("name", "sound", "offset"),
    [("a.mp4", "aac", 0.0), ("a.ts", "aac", 3.0), ("a.mkv", "pcm_s16le", 0.0), ("a.mkv", "libopus", 0.0)],
)
def test_a_flash_stays_beside_its_beep(tmp_path: Path, name: str, sound: str, offset: float) -> None:
    source = recorded(tmp_path / name, sound, offset, 48000 if sound == "libopus" else RATE)
    output = tmp_path / "shown.mp4"
    video = copied(source, output)
    assert flash(output) == pytest.approx(beep(output), abs=0.06)  # a place of the grid, and the time of a frame
    assert beep(output) == pytest.approx(FLASH, abs=0.03)
    assert video.notes == {} and sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "shown.mp4"])


def test_ordinary_players_open_it(tmp_path: Path) -> None:
    output = tmp_path / "shown.mp4"
    copied(recorded(tmp_path / "a.mkv", "libopus", rate=48000), output)
    content = output.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it plays before it is loaded
    with av.open(str(output)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert audio.codec_context.name == "aac"


def test_aac_is_copied_bit_for_bit(tmp_path: Path) -> None:
    source, output = recorded(tmp_path / "a.mp4", "aac"), tmp_path / "shown.mp4"
    copied(source, output)
    packets = []
    for path in (source, output):
        with av.open(str(path)) as container:
            packets.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
    assert len(packets[1]) > 50 and packets[1] == packets[0][: len(packets[1])]


def test_a_silent_source_gives_a_silent_video(tmp_path: Path) -> None:
    copied(recorded(tmp_path / "a.mp4", None), tmp_path / "shown.mp4")
    video = SoundedVideo(tmp_path / "frames.mp4", (48, 64), 10, None)
    times = [video.add(np.zeros((48, 64, 3), np.uint8), 0.1 * index) for index in range(5)]
    video.close()
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for name in ("shown.mp4", "frames.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert not container.streams.audio


def test_a_clock_that_goes_back_is_noted_and_nothing_is_lost(tmp_path: Path) -> None:
    video = SoundedVideo(tmp_path / "a.mp4", (48, 64), 10, None)
    times = [video.add(np.zeros((48, 64, 3), np.uint8), time) for time in (5.0, 5.1, 1.0, 1.1, 5.3)]
    video.close()
    assert times[0] == 0 and all(b > a for a, b in itertools.pairwise(times))
    assert "goes back" in video.notes["sound"]
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == 5
