"""The same clips in each layout that mien reads, and files that the operating system has forgotten again."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mien.data_pipelines import decode, packing, shards
from mien.data_pipelines.manifest import Manifest, build, located
from mien.data_pipelines.packing import PackConfig
from mien.data_pipelines.rekey import h264
from mien.platform.progress import progress

FAR = 250  # frames between keyframes, where an encoder is left to itself
NEAR = 16


def build_all(source: Manifest, as_is: bool, side: int, quality: int, output: Path) -> dict[str, Manifest]:
    """Return the clips of `source` in every layout, written under `output` where they are not there yet.

    `as_is`: the source's own files are a layout too, else an mp4 as encoders make it by themselves. Frames of the JPEG
    layouts have `side` pixels, as the literature's aligned faces.
    """
    layouts = {"as it is": source} if as_is else {}

    def mp4(frames: np.ndarray, path: Path, every: int, crf: int) -> None:
        path.write_bytes(h264([frames], 25, every, crf))

    def folder(frames: np.ndarray, path: Path) -> None:
        path.mkdir(exist_ok=True)
        for number, frame in enumerate(frames):
            picture = cv2.resize(frame[..., ::-1], (side, side), interpolation=cv2.INTER_LINEAR)
            cv2.imwrite(str(path / f"{number + 1:05d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])

    makers: dict[str, tuple[str, Callable[[np.ndarray, Path], None]]] = {
        "mp4": (".mp4", lambda frames, path: mp4(frames, path, FAR, 18)),
        "mp4, re-keyed": (".mp4", lambda frames, path: mp4(frames, path, NEAR, 18)),
        "JPEG folders": ("", folder),
    }
    if as_is:
        del makers["mp4"]
    for name, (suffix, make) in makers.items():
        layouts[name] = _written(source, output / name.replace(", ", "_").replace(" ", "_"), suffix, make)
    for name, of in (("JPEG shards", "JPEG folders"), ("re-keyed shards", "mp4, re-keyed")):
        layouts[name] = _packed(layouts[of], output / name.replace(" ", "_"))
    return layouts


def _written(source: Manifest, folder: Path, suffix: str, make: Callable[[np.ndarray, Path], None]) -> Manifest:
    file = folder / "manifest.parquet"
    if file.exists():
        return Manifest.read(file)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with progress(f"writing {folder.name}", len(source), "clips") as bar:
        for number, row in enumerate(source.rows()):
            wanted = row["start"] + np.arange(row["frames"])
            frames = decode.read(located(source.root, row["path"]), wanted, (row["height"], row["width"]))
            path = folder / f"{number:05d}{suffix}"
            make(frames, path)
            found = decode.probe(path)
            size = {"height": found.height, "width": found.width}
            rows.append(row | size | {"path": path.name, "start": 0, "label": None})
            bar.advance()
    build(rows, (), folder.resolve(), folder.name).write(file)
    return Manifest.read(file)


def _packed(manifest: Manifest, folder: Path) -> Manifest:
    config = PackConfig(layout="source")
    for number, clips in enumerate(packing.parts(packing.plan(manifest, config), config)):
        if not packing.is_whole(folder, number):
            packing.pack_part(clips, number, config, folder)
    packed, rejected = packing.packed_manifest(manifest, config, folder)
    assert packed is not None and not rejected
    return packed


def files_of(manifest: Manifest) -> list[Path]:
    """Return the files that a manifest's clips are read from."""
    files: dict[Path, None] = {}
    for path in manifest.column("path"):
        place = Path(located(manifest.root, path.split("#")[0] if shards.is_clip(path) else path))
        files |= dict.fromkeys(decode.frame_files(place) if place.is_dir() else [place])
    return list(files)


def forget(files: Sequence[Path]) -> None:
    """Have the operating system drop files from its cache, so that the next read comes from the disk; Linux only."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
