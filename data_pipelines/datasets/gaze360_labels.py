"""The labelled frames of Gaze360 as its owners give them: the release's metadata.mat, or the code release's lists.

Both use the documented names (https://github.com/erkil1452/gaze360, dataset/README.md): a frame's image is
`recordings[recording]/head/%06d/%06d.jpg` of `person_identity` and `frame`, all counted from 0.
"""

import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mien.data_pipelines.probing import DatasetError

NUMBERS = ("recording", "person_identity", "frame", "split")
FIELDS = ("recordings", *NUMBERS, "gaze_dir")  # the only ones that are read, beside `splits`
SPLITS = ("train", "val", "test", "unused")  # by number, where the file does not name them
LISTS = {"train": ("train.txt",), "val": ("validation.txt", "val.txt"), "test": ("test.txt",)}
_LINE = re.compile(r"(?:.*/)?([^/]+/head/[^/]+)/(\d+)\.\w+")
# What scipy raises for a file that is no Matlab file, or was cut off anywhere.
_DAMAGED = (OSError, ValueError, TypeError, LookupError, NotImplementedError, MemoryError, MatReadError, zlib.error)


class Labels(NamedTuple):
    """Labelled frames as given, with nothing checked but their form."""

    folders: list[str]  # rec_000/head/000001
    numbers: np.ndarray  # int64 (n,)
    parts: list[str]  # train, val, test; or another, which is none of them
    vectors: np.ndarray  # float64 (n, 3)
    notes: list[str]


def read_metadata(path: Path) -> Labels:
    """Return the frames of the release's metadata.mat."""

    def refuse(rule: str, said: str) -> DatasetError:
        return DatasetError(f"{path.absolute()}: {rule}, but {said}: restore the released file, or set labels")

    table: dict[str, Any]
    try:
        table = loadmat(str(path), variable_names=[*FIELDS, "splits"])
    except _DAMAGED as error:
        raise refuse("metadata.mat is a Matlab file of version 7 or less", f"it cannot be read ({error})") from error
    missing = [name for name in FIELDS if name not in table]
    if missing:
        raise refuse(f"metadata.mat has the fields {', '.join(FIELDS)}", f"there is no {', '.join(missing)}")
    vectors = np.asarray(table["gaze_dir"], np.float64)
    recording, person, frame, split = columns = [np.ravel(table[name]).astype(np.int64) for name in NUMBERS]
    lengths = [len(vectors), *map(len, columns)]
    if len(set(lengths)) > 1 or not lengths[0] or vectors.shape[1:] != (3,):
        said = ", ".join(f"{name} {length}" for name, length in zip(("gaze_dir", *NUMBERS), lengths, strict=True))
        raise refuse("every field has a row for each frame, and gaze_dir three columns", f"rows are {said}")
    recordings = _words(table["recordings"])
    splits = [{"validation": "val"}.get(name, name) for name in _words(table.get("splits", np.array(SPLITS)))]
    for name, values, words in (("recording", recording, recordings), ("split", split, splits)):
        if values.min() < 0 or values.max() >= len(words):
            said = f"it goes from {values.min()} to {values.max()}"
            raise refuse(f"{name} counts {len(words)} names from 0", said)
    if not set(LISTS) <= set(splits):
        raise refuse(f"splits are named {', '.join(SPLITS)}", f"they are {', '.join(splits)}")
    folders = [f"{recordings[r]}/head/{p:06d}" for r, p in zip(recording.tolist(), person.tolist(), strict=True)]
    return Labels(folders, frame, [splits[s] for s in split.tolist()], vectors, [])


def _words(cells: np.ndarray) -> list[str]:
    """Return names that Matlab keeps as cells or as padded rows of letters."""
    return [str(np.ravel(cell)[0] if np.size(cell) else "").strip() for cell in np.ravel(cells)]


def read_lists(folder: Path, allow_missing: bool) -> Labels:
    """Return the lines of the code release's lists; some may be missing if `allow_missing`."""
    files = {part: [folder / name for name in names if (folder / name).is_file()] for part, names in LISTS.items()}
    absent = [LISTS[part][0] for part, found in files.items() if not found]
    if absent and (len(absent) == len(LISTS) or not allow_missing):
        remedy = "set labels to the folder that holds them" + (", or allow_missing" if len(absent) < len(LISTS) else "")
        raise DatasetError(
            f"{folder.absolute()} must hold train.txt, validation.txt and test.txt, but there is no "
            f"{', '.join(absent)}: {remedy}"
        )
    notes = [f"there is no {name}" for name in absent]
    folders: list[str] = []
    numbers: list[int] = []
    parts: list[str] = []
    vectors: list[tuple[float, float, float]] = []
    windows = False
    for part, found in files.items():
        for file in found:
            for line, written in enumerate(_text(file).splitlines(), start=1):
                fields = written.replace("\\", "/").rsplit(maxsplit=3)
                if not fields:
                    continue
                windows |= "\\" in written
                place = _LINE.fullmatch(fields[0].strip())
                try:
                    x, y, z = map(float, fields[1:])
                except ValueError:
                    place = None
                if place is None:
                    raise DatasetError(
                        f"{file}:{line}: a line is rec_000/head/000001/000123.jpg x y z, but this one is {written!r}: "
                        "correct it, or read other lists with `prepare.py annotations`"
                    )
                folders.append(place[1])
                numbers.append(int(place[2]))
                parts.append(part)
                vectors.append((x, y, z))
    notes += ["\\ in paths read as /"] if windows else []
    return Labels(folders, np.array(numbers, np.int64), parts, np.reshape(np.array(vectors), (-1, 3)), notes)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: a list must be readable text, but: {error}: restore the released file") from error
