"""FERV39k (Wang et al., CVPR 2022): 38,935 film and web clips of 22 scenes in seven classes, one official test part.

    ROOT/2_ClipsforFaceCrop/Action/Happy/0267/*.jpg         face crops: scene, emotion, clip; or 0267.mp4, a video
    ROOT/4_setups/All_scenes/{train,test}_All.csv           lines `Action/Happy/0267 Happy`

A clip's id is its listed path. Who is seen is not known; the scene is the first folder of the id. The set has no
validation part, and the published system validates on test; here `splits.py` takes validation out of train.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mien.data_pipelines.labelled_clips import LabelledConfig, build_labelled, find_clips, without_suffix
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.official_lists import read_list
from mien.data_pipelines.probing import DatasetError, Progress

CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
NUM_CLIPS = {"train": 31088, "test": 7847}


class Ferv39kConfig(LabelledConfig, frozen=True):
    """Where FERV39k is."""

    name: Literal["ferv39k"] = "ferv39k"
    root: str = Field("data/ferv39k", description="folder that holds 2_ClipsforFaceCrop and 4_setups")
    clips: str = Field("2_ClipsforFaceCrop", description="folder of the scenes' folders under root")
    lists: str = Field("4_setups/All_scenes", description="folder of train_All.csv and test_All.csv under root")


def read(config: Ferv39kConfig, progress: Progress | None = None) -> Manifest:
    """Return the clips with class and official part, train or test."""
    root = Path(config.root)
    found = find_clips(
        "FERV39k",
        root,
        (config.clips,),
        ("*/*/*",),
        _plain,
        f"{root}/2_ClipsforFaceCrop/Action/Happy/0267 (https://github.com/wangyanckxx/FERV39k)",
    )
    tables = {part: _read(root / config.lists / f"{part}_All.csv") for part in NUM_CLIPS}
    both = sorted(set(tables["train"]) & set(tables["test"]))
    if both:
        raise DatasetError(
            f"a clip of FERV39k is in one official part, but {len(both)} are in train_All.csv and in test_All.csv of "
            f"{root / config.lists}: {', '.join(both[:5])}: restore the official files"
        )
    wanted = {clip: {"label": table[clip], "split": part} for part, table in tables.items() for clip in sorted(table)}
    notes = [f"{len({clip.partition('/')[0] for clip in wanted})} scenes, each the first folder of a clip's id"]
    notes += [
        f"{part}_All.csv names {len(tables[part]):,} clips, of the published {published:,}"
        for part, published in NUM_CLIPS.items()
        if len(tables[part]) != published
    ]
    # A clip is found whatever the case of its folders, and has the id that the lists write.
    written = {clip.lower(): clip for clip in wanted}
    paths = {clip if clip in wanted else written.get(clip.lower(), clip): path for clip, path in found.paths.items()}
    return build_labelled(config, "FERV39k", CLASSES, wanted, found._replace(paths=paths), notes, progress)


def _read(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise DatasetError(
            f"FERV39k needs its official lists, but there is no {path.absolute()}: unpack 4_setups there, or set lists"
        )
    meant = {name.lower(): number for number, name in enumerate(CLASSES)}
    return read_list(path, "FERV39k", f"one of {', '.join(CLASSES)}", lambda text: meant.get(text.lower()), _plain)


def _plain(path: str) -> str:
    """Return a clip's path without what writers add: Windows separators, a leading ./, a slash, a video's suffix."""
    path = path.strip().replace("\\", "/").removeprefix("./").strip("/")
    return without_suffix(path)
