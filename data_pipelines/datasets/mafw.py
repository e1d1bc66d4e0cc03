"""MAFW (Liu et al., ACM MM 2022): clips in the wild, the 9,172 with a single label in eleven classes, five folds.

    ROOT/data/clips/00001.mp4                        as its owner ships it
    ROOT/data/frames/00001/*.png                     the owner's face crops, as the literature uses: full frames score
                                                     far lower with the published models
    ROOT/split/single/no_caption/set_{1..5}/{train,test}.txt        lines `00001.mp4 label`

A clip's fold is the one that tests it; who is seen is not known. A label is a class's name, or its number in the order
below from 0 or from 1: files that hold a 0 count from 0, files that hold an 11 from 1.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mien.data_pipelines.labelled_clips import LabelledConfig, build_labelled, find_clips
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.official_lists import fold_files, numbered_clip, pairs, read_folds, read_list
from mien.data_pipelines.probing import DatasetError, Progress

CLASSES = (
    *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
NUM_CLIPS = 9172
LISTS = ("split/single/no_caption", "Train & Test Set/single/no_caption")


class MafwConfig(LabelledConfig, frozen=True):
    """Where MAFW is."""

    name: Literal["mafw"] = "mafw"
    root: str = Field("data/mafw", description="folder that holds data and split")
    clips: str | None = Field(None, description="folder under root; none = data/frames, or else data/clips")
    lists: str | None = Field(None, description=f"folder of set_1 to set_5 under root; none = {' or '.join(LISTS)}")


def read(config: MafwConfig, progress: Progress | None = None) -> Manifest:
    """Return the single-labelled clips with class and official fold."""
    root = Path(config.root)
    found = find_clips(
        "MAFW",
        root,
        (config.clips,) if config.clips else ("data/frames", "data/clips", "frames", "clips"),
        ("*",),
        numbered_clip,
        f"{root}/data/frames/00001/*.png or {root}/data/clips/00001.mp4 (https://mafw-database.github.io/MAFW)",
    )
    places = [root / lists for lists in ((config.lists,) if config.lists else LISTS)]
    folder = next((place for place in places if place.is_dir()), places[0])
    if not folder.is_dir():
        raise DatasetError(
            f"MAFW needs its official lists, but there is no {' or '.join(str(place.absolute()) for place in places)}: "
            "unpack set_1 to set_5 there, or set lists"
        )
    files = fold_files(folder, "set_*/train.txt", "set_*/test.txt")
    texts = {label.lower() for pair in files.values() for path in pair for _, (_, label) in pairs(path)}
    first = _count_from(texts, folder)
    label_of, fold_of = read_folds(folder, files, lambda path: _read(path, first))
    wanted = {clip: {"label": label_of[clip], "fold": fold_of[clip]} for clip in sorted(label_of)}
    notes = (
        [] if len(wanted) == NUM_CLIPS else [f"the lists name {len(wanted):,} clips, of the published {NUM_CLIPS:,}"]
    )
    return build_labelled(config, "MAFW", CLASSES, wanted, found, notes, progress)


def _read(path: Path, first: int) -> dict[str, int]:
    numbers = {str(number): number - first for number in range(first, first + len(CLASSES))}
    meant = numbers | {name: number for number, name in enumerate(CLASSES)}
    rule = f"one of {', '.join(CLASSES)}, or a number from {first} to {first + len(CLASSES) - 1}"
    return read_list(path, "MAFW", rule, lambda text: meant.get(text.lower()))


def _count_from(labels: set[str], folder: Path) -> int:
    """Return the number of the first class in all of the official files."""
    numbers = {int(label) for label in labels if label.isdecimal()}
    if not numbers or 0 in numbers:
        return 0
    if len(CLASSES) in numbers:
        return 1
    raise DatasetError(
        f"MAFW's labels must be names, or numbers that show whether they count from 0 or from 1, but {folder} holds "
        f"neither 0 nor {len(CLASSES)}: restore the official files, or write the classes' names"
    )
