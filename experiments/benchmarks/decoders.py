"""Which library reads mp4 files: PyAV as `video_files.py` uses it, beside decord or decord2 where one is installed.

    pip install decord2==3.4.0        # or decord==0.6.0; never both, they have one name; best in an environment apart
    python experiments/benchmarks/decoders.py [--output DIR] [key=value ...]

Asks of each: are the pixels the same, how long do 16 frames with a stride of 4 of 224x224 take (processor time, in
turns), how much memory is kept after thousands of openings, and how many of as many damaged files end the process that
reads them, each in a process of its own.
"""

import importlib
import json
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.rekey import h264
from mien.data_pipelines.video_files import DecodeError, read_video
from mien.experiments.benchmarks import damage
from mien.experiments.benchmarks.memory import memory
from mien.platform.config import dump, parse, run_program
from mien.platform.progress import progress
from mien.platform.storage import write_whole

Reader = Callable[[str, np.ndarray], np.ndarray]
HANG_SECONDS = 20.0
DAMAGES = ("bytes flipped", "tables flipped", "index flipped", "fields extreme", "zeroed block", "noise block")
TABLES = (b"stsz", b"stco", b"stts", b"ctts", b"stsc", b"stss")  # of an mp4: where its frames are, and when


class DecodersConfig(BaseModel, frozen=True, extra="forbid"):
    """How much is tried."""

    damaged: int = Field(1000, ge=1, description="damaged files")
    openings: int = Field(10_000, ge=1, description="times that files are opened to see what memory stays")
    rounds: int = Field(30, ge=1, description="clips of each file that are timed")
    seed: int = Field(0, description="of the damages and of the clips")


def readers() -> dict[str, Reader]:
    """Return what is installed."""
    found: dict[str, Reader] = {"PyAV, as mien": lambda path, wanted: read_video(path, None, wanted)}
    try:
        decord: Any = importlib.import_module("decord")
    except ModuleNotFoundError:
        return found
    importlib.import_module("decord.logging").set_level(importlib.import_module("decord.logging").QUIET)

    def by_decord(path: str, wanted: np.ndarray) -> np.ndarray:
        try:
            frames: np.ndarray = decord.VideoReader(path, num_threads=1).get_batch(wanted.tolist()).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise DecodeError(path, str(error)) from error
        return frames

    return found | {f"decord {decord.__version__}": by_decord}


def write_videos(root: Path) -> dict[str, Path]:
    """Write whole mp4 files, two of them large enough to be timed."""
    found = {}
    for number, (suffix, codec, options) in enumerate(damage.VIDEOS):
        if suffix in ("mp4", "m4v", "mov"):
            name = " ".join([codec, *(f"{key}={value}" for key, value in options.items())])
            found[name] = damage.video(root / f"{number}.{suffix}", codec, options)
    found["libx264, wavering rate"] = wavering(root / "wavering.mp4")
    noise = np.random.default_rng(0).integers(0, 256, (28, 28 + 32, 3), dtype=np.uint8)
    large = np.stack([noise[:, at % 32 : at % 32 + 28].repeat(8, 0).repeat(8, 1) for at in range(250)])
    for every in (16, 250):
        found[f"224, keyframe every {every}"] = root / f"large{every}.mp4"
        found[f"224, keyframe every {every}"].write_bytes(h264([large], 25, keyframe_every=every, crf=18))
    return found


def wavering(path: Path) -> Path:
    """Write a video whose frames are 10 to 90 ms apart, which has the longest tables."""
    times = np.cumsum(np.random.default_rng(0).integers(10, 90, damage.FRAMES)).tolist()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "bf": "4", "g": "15"})
        stream.width, stream.height, stream.pix_fmt = damage.WIDTH, damage.HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms, picture in zip(times, damage.pictures(0), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def spoilt(content: bytes, how: str, rng: np.random.Generator) -> bytes:
    """Return a damaged mp4."""
    if how != "tables flipped":
        return damage.DAMAGES[how](content, rng)
    made = bytearray(content)
    for table in TABLES:
        place = made.find(table)
        if place >= 0 and rng.random() < 0.5:
            for at in rng.integers(place + 4, place + 60, int(rng.integers(1, 6))):
                made[min(int(at), len(made) - 1)] = int(rng.integers(256))
    return bytes(made)


def differences(videos: dict[str, Path], library: dict[str, Reader], seed: int) -> dict[str, str]:
    """Return for each video whether all libraries give the pixels that reading it in order gives."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, path in videos.items():
        every = read_video(str(path), None, np.arange(damage.FRAMES))
        wrong: Counter[str] = Counter()
        for _ in range(10):
            wanted = np.unique(rng.integers(0, damage.FRAMES, 8))
            wrong.update(
                who for who, read in library.items() if not np.array_equal(read(str(path), wanted), every[wanted])
            )
        found[name] = ", ".join(f"{who}: {count} of 10 clips wrong" for who, count in wrong.items()) or "equal"
    return found


def milliseconds(videos: dict[str, Path], library: dict[str, Reader], config: DecodersConfig) -> dict[str, Any]:
    """Return the median processor time of a clip of each large video."""
    rng = np.random.default_rng(config.seed)
    found: dict[str, Any] = {}
    for name, path in videos.items():
        if name.startswith("224"):
            taken: dict[str, list[float]] = {who: [] for who in library}
            for _ in range(config.rounds):
                wanted = int(rng.integers(250 - 63)) + 4 * np.arange(16)
                for who, read in library.items():
                    began = time.process_time()
                    read(str(path), wanted)
                    taken[who].append(1000 * (time.process_time() - began))
            found[name] = {who: round(statistics.median(times), 1) for who, times in taken.items()}
    return found


def kept(videos: dict[str, Path], read: Reader, openings: int) -> dict[int, float]:
    """Return the MiB of this process's own pages after a tenth, half and all of the openings."""
    paths, found = [str(path) for path in videos.values()], {}
    for number in range(1, openings + 1):
        read(paths[number % len(paths)], np.array([number % 8]))
        if number in (openings // 10, openings // 2, openings):
            found[number] = round(memory()["driver"], 1)
    return found


def apart(work: Callable[[], object]) -> tuple[str, Any]:
    """Do `work` in a process forked from this one; return how it ended and what it returned."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            os.write(send, json.dumps(work()).encode())
            os._exit(0)
        except DecodeError:
            os._exit(1)
        finally:
            os._exit(2)  # what else is raised; never does the child go on as this program
    os.close(send)
    until = time.monotonic() + HANG_SECONDS if work.__name__ == "damaged" else float("inf")
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    with os.fdopen(receive) as stream:
        told = stream.read()
    if not ended[0]:
        return "hung", None
    code = os.waitstatus_to_exitcode(ended[1])
    how = {0: "read", 1: "refused"}.get(code, f"ended by signal {-code}" if code < 0 else "raised another error")
    return how, json.loads(told) if told else None


def endings(root: Path, videos: dict[str, Path], library: dict[str, Reader], config: DecodersConfig) -> dict[str, Any]:
    """Damage files, and return for each library how the processes that read them ended."""
    rng, whole = np.random.default_rng(config.seed), [path for name, path in videos.items() if name[:3] != "224"]
    found: dict[str, Counter[str]] = {who: Counter() for who in library}
    with progress("damaged files", config.damaged, "files") as bar:
        for number in range(config.damaged):
            path = root / "damaged.mp4"
            content = whole[number % len(whole)].read_bytes()
            path.write_bytes(spoilt(content, DAMAGES[number // len(whole) % len(DAMAGES)], rng))
            for who, read in library.items():

                def damaged(read: Reader = read, path: Path = path) -> None:
                    read(str(path), np.array([0]))
                    read(str(path), np.arange(0, damage.FRAMES, 5))

                found[who][apart(damaged)[0]] += 1
            bar.advance()
    return {who: dict(counts) for who, counts in found.items()}


def main(argv: Sequence[str]) -> None:
    """Read the command line, compare and print."""
    call = parse(DecodersConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output, config, library = (call.output or Path("output/benchmarks/decoders")).absolute(), call.config, readers()
    root = output / "videos"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    videos = write_videos(root)
    found: dict[str, Any] = {"pixels": differences(videos, library, config.seed)}
    found["milliseconds"] = milliseconds(videos, library, config)
    found["endings"] = endings(root, videos, library, config)

    def opened(read: Reader) -> Callable[[], object]:
        return lambda: kept(videos, read, config.openings)

    found["mib_by_openings"] = {who: apart(opened(read))[1] for who, read in library.items()}
    print(json.dumps(found, indent=1))
    write_whole(output / "decoders.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
