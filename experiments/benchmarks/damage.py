"""Broken files of every kind that is read, the same for the same seed: damaged in their bytes, or no files at all."""

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from mien.data_pipelines import packing
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.packing import PackConfig
from mien.data_pipelines.probing import printable

FRAMES, HEIGHT, WIDTH = 40, 48, 64
HUGE = (30_000, 65_535)  # pixels that a header may claim for a side
EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x00\x00\x00", b"\x00\x01\x00\x00")
# File ending, codec, and the encoder's options.
VIDEOS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mp4", "libx264", {"g": "12", "bf": "3"}),
    ("mp4", "libx264", {"g": "250", "bf": "8"}),
    ("mp4", "mpeg4", {"bf": "2"}),
    ("mov", "mjpeg", {}),
    ("m4v", "libx264", {"g": "1"}),
    ("avi", "mpeg4", {}),
    ("avi", "mjpeg", {}),
    ("mkv", "libx264", {"g": "12"}),
    ("webm", "libvpx", {}),
    ("ts", "libx264", {"g": "12"}),
    ("flv", "flv", {}),
    ("wmv", "wmv2", {}),
    ("mpg", "mpeg2video", {}),
)
IMAGES = ("jpg", "png", "bmp", "webp")
FOURCCS = rb"avc1|mp4v|jpeg|FMP4|MJPG|H264|V_MPEG4/ISO/AVC|V_VP8|WMV2"


class Broken(NamedTuple):
    """A file, folder or clip in a shard, and what was done to it."""

    path: str
    kind: str  # mp4, jpg, folder, shard, ...
    damage: str


def pictures(seed: int, frames: int = FRAMES) -> np.ndarray:
    """Return moving noise, uint8 (t, h, w, c)."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH + frames, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.stack([soft[:, begin : begin + WIDTH] for begin in range(frames)])


def video(path: Path, codec: str, options: dict[str, str]) -> Path:
    """Write a whole video."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:  # no date, no random number
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for picture in pictures(len(options)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def image(kind: str, seed: int) -> bytes:
    """Return a whole image."""
    return cv2.imencode(f".{kind}", pictures(seed, 1)[0])[1].tobytes()


def folder(path: Path, kind: str, frames: int = 12) -> Path:
    """Write a whole frame folder."""
    path.mkdir()
    for number in range(frames):
        (path / f"{number + 1:03d}.{kind}").write_bytes(image(kind, number))
    return path


# Each takes bytes and a generator, and returns other bytes.
def _flips(content: bytearray, low: int, high: int, most: int, rng: np.random.Generator) -> bytes:
    for place in rng.integers(low, max(high, low + 1), int(rng.integers(1, most))):
        content[min(int(place), len(content) - 1)] = int(rng.integers(256))
    return bytes(content)


def _block(content: bytearray, rng: np.random.Generator, noise: bool) -> bytes:
    begin, length = int(rng.integers(len(content))), int(rng.integers(1, max(2, len(content) // 4)))
    length = min(length, len(content) - begin)
    content[begin : begin + length] = rng.bytes(length) if noise else bytes(length)
    return bytes(content)


def _index(content: bytes) -> tuple[int, int]:
    """Return where an mp4's index stands; of others, the beginning, where headers are."""
    place = content.find(b"moov")
    return (place, len(content)) if place >= 0 else (0, min(1024, len(content)))


def _fields(content: bytearray, rng: np.random.Generator) -> bytes:
    low, high = _index(bytes(content))
    for place in rng.integers(low, max(high - 4, low + 1), int(rng.integers(1, 5))):
        content[place : place + 4] = EXTREMES[int(rng.integers(len(EXTREMES)))]
    return bytes(content)


def _sizes(content: bytearray, rng: np.random.Generator) -> bytes:
    """Claim a huge picture, or a huge number of frames, where the format says either."""
    sides = [int(rng.choice(HUGE)), int(rng.choice(HUGE))]
    if content.startswith(b"\x89PNG"):
        content[16:24] = struct.pack(">II", *sides)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif content.startswith(b"\xff\xd8"):
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", *sides)
    elif content.startswith(b"BM"):
        content[18:26] = struct.pack("<ii", *sides)
    elif content[8:12] == b"WEBP":
        content[26:30] = struct.pack("<HH", 0x3FFF, 0x3FFF)
    elif b"moov" in content:
        for name, offset, form in ((b"tkhd", 80, ">II"), (b"stsd", 44, ">HH")):
            place = content.index(name) + offset
            claimed = [side << 16 for side in sides] if form == ">II" else sides
            content[place : place + struct.calcsize(form)] = struct.pack(form, *[side & 0xFFFFFFFF for side in claimed])
        if rng.random() < 0.5:  # a billion frames
            for name in (b"stsz", b"stts"):
                place = content.index(name) + (12 if name == b"stsz" else 8)
                content[place : place + 4] = struct.pack(">I", 10**9)
    elif content.startswith(b"RIFF"):
        place = content.index(b"strf") + 12
        content[place : place + 8] = struct.pack("<ii", *sides)
    else:
        for claim in re.finditer(rb"\xb0\x81.|\xba\x81.", bytes(content[:1024])):  # Matroska's width and height
            content[claim.end() - 1] = 0xFF
        return _fields(content, rng)
    return bytes(content)


def _codec(content: bytearray, rng: np.random.Generator) -> bytes:
    """Say that another codec made it, a known one or not."""
    names = (b"avc1", b"hev1", b"mp4v", b"XXXX", b"vp09", b"MJPG", b"VP80")
    other = names[int(rng.integers(len(names)))]
    return re.sub(FOURCCS, lambda found: other.ljust(len(found[0]), b"\0")[: len(found[0])], bytes(content))


DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "bytes flipped": lambda c, rng: _flips(bytearray(c), 0, len(c), 60, rng),
    "header flipped": lambda c, rng: _flips(bytearray(c), 0, min(256, len(c)), 12, rng),
    "index flipped": lambda c, rng: _flips(bytearray(c), *_index(c), 12, rng),
    "fields extreme": lambda c, rng: _fields(bytearray(c), rng),
    "truncated": lambda c, rng: c[: int(len(c) * rng.random())],
    "head cut off": lambda c, rng: c[int(len(c) * rng.random()) :],
    "zeroed block": lambda c, rng: _block(bytearray(c), rng, noise=False),
    "noise block": lambda c, rng: _block(bytearray(c), rng, noise=True),
    "a piece twice": lambda c, rng: c[: len(c) // 2] + c[len(c) // 4 :],
    "huge size declared": lambda c, rng: _sizes(bytearray(c), rng),
    "another codec named": lambda c, rng: _codec(bytearray(c), rng),
    "zero bytes": lambda c, rng: b"",
    "all zeros": lambda c, rng: bytes(len(c)),
    "noise": lambda c, rng: rng.bytes(len(c)),
    "text": lambda c, rng: b"This is a text, whatever its name says.\n" * 40,
    "a playlist": lambda c, rng: b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n",
}
ODD = ("folder", "pipe", "link to nothing", "link to itself", "unreadable", "name not UTF-8")


def break_files(root: Path, count: int, seed: int) -> list[Broken]:
    """Write `count` broken files, folders and shards' clips under the empty folder `root`, and one of each that is odd.

    Kinds and damages take turns, so that every kind meets every damage; a damage that leaves a file as it was (no codec
    to rename) is followed by flipped bytes.
    """
    whole = root / "whole"
    whole.mkdir(parents=True)
    sources: list[tuple[str, bytes]] = []
    for number, (suffix, codec, options) in enumerate(VIDEOS):
        sources.append((suffix, video(whole / f"{number:02d}.{suffix}", codec, options).read_bytes()))
    sources += [(kind, image(kind, 0)) for kind in IMAGES]
    sources += [(kind, b"") for kind in ("jpg folder", "png folder", "shard of frames", "shard of mp4")]
    rng, names = np.random.default_rng(seed), list(DAMAGES)
    found: list[Broken] = []
    for number in range(count):
        suffix, content = sources[number % len(sources)]
        damage = names[(number // len(sources) + number) % len(names)]
        name = f"{number:04d}"

        def spoil(content: bytes, damage: str = damage) -> bytes:
            spoilt = DAMAGES[damage](content, rng)
            return spoilt if spoilt != content else DAMAGES["bytes flipped"](content, rng)

        if suffix.endswith("folder"):
            files = sorted(folder(root / name, suffix.split()[0]).iterdir())
            for file in (files[0], files[-1], *rng.choice(np.array(files), 2)):
                file.write_bytes(spoil(image(suffix.split()[0], 0)))
            found.append(Broken(name, "folder", damage))
        elif suffix.startswith("shard"):
            found.append(Broken(_shard(root, name, suffix.endswith("mp4"), spoil), "shard", damage))
        else:
            # One in ten under another kind's name.
            ending = sources[int(rng.integers(len(VIDEOS) + len(IMAGES)))][0] if rng.random() < 0.1 else suffix
            (root / f"{name}.{ending}").write_bytes(spoil(content))
            found.append(Broken(f"{name}.{ending}", suffix, damage))
    return found + [Broken(_odd(root, what, sources[0][1]), "odd", what) for what in ODD]


def _shard(root: Path, name: str, is_video: bool, spoil: Callable[[bytes], bytes]) -> str:
    """Pack one clip, damage the shard, and return the clip's place in it."""
    path = "whole/00.mp4" if is_video else folder(root / "whole" / name, "jpg").relative_to(root).as_posix()
    made = build([row_of(path, FRAMES if is_video else 12)], ("a",), root, "whole")
    config, output = PackConfig(layout="source"), root / f"shards{name}"
    packing.pack_part(packing.plan(made, config), 0, config, output)
    packed, _ = packing.packed_manifest(made, config, output)
    assert packed is not None
    shard, _, place = str(packed.column("path")[0]).partition("#")
    file = output / shard
    file.write_bytes(spoil(file.read_bytes()))
    return f"{output.name}/{shard}#{place}"


def _odd(root: Path, what: str, content: bytes) -> str:
    """Make what is no readable file but is called one; return its path under `root`."""
    name = f"odd {ODD.index(what)}.mp4"
    path = root / name
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to("nowhere.mp4")
        case "link to itself":
            path.symlink_to(name)
        case "unreadable":
            path.write_bytes(content)
            path.chmod(0)  # root reads it all the same
        case "name not UTF-8":
            (root / os.fsdecode(b"odd \xff.mp4")).write_bytes(content)
            name = printable(os.fsdecode(b"odd \xff.mp4"))
    return name


def row_of(path: str, frames: int = FRAMES) -> dict[str, object]:
    """Return a manifest row that says that a file is whole."""
    size = {"height": HEIGHT, "width": WIDTH}
    return {"video": path, "path": path, "dataset": "broken", "label": 0, "frames": frames, "fps": 25.0, **size}


def manifest_of(root: Path, broken: list[Broken], whole: int) -> Manifest:
    """Return a manifest of the broken files that says that they are whole, and of `whole` ones that are so."""
    frames = {"folder": 12, "shard": 12} | dict.fromkeys(IMAGES, 1)
    utf8 = [one for one in broken if one.damage != "name not UTF-8"]  # a manifest could not name that one
    rows = [row_of(one.path, frames.get(one.kind, FRAMES)) for one in utf8]
    rows += [row_of("whole/00.mp4") | {"video": f"whole {number}"} for number in range(whole)]
    return build(rows, ("a",), root.resolve(), "broken")
