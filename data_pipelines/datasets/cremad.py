"""CREMA-D (Cao et al., IEEE TAC 2014): 91 actors say 12 sentences in six emotions; 7,442 clips in five folds.

    ROOT/VideoFlash/1001_DFA_ANG_XX.flv           as its owner ships it, through git-lfs
    ROOT/face_aligned/1001_DFA_ANG_XX/*.jpg       aligned faces, as the literature uses

A name is actor, sentence, emotion, level. IEO is said neutrally and, of the five other emotions, at the levels LO, MD
and HI; every other sentence once in each emotion, level XX: 82 names an actor. The owner's list, SentenceFilenames.csv,
lacks twenty of them (`ABSENT`). The folds are the published ones, by actor, each tested once.
"""

import re
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field

from mien.data_pipelines.labelled_clips import Found, LabelledConfig, build_labelled, check_chosen, find_clips
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.probing import DatasetError, Progress

CLASSES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
LEVELS = ("LO", "MD", "HI")  # of IEO alone
ACTORS = range(1001, 1092)
FOLDS = (range(1001, 1019), range(1019, 1037), range(1037, 1055), range(1055, 1073), range(1073, 1092))
ABSENT = frozenset(
    ["1002_TIE_NEU_XX", "1076_ITS_NEU_XX"]
    + [f"{take}_{emotion}_XX" for take in ("1008_WSI", "1009_MTI", "1019_ITH") for emotion in CLASSES]
)


class CremadConfig(LabelledConfig, frozen=True):
    """Where CREMA-D is."""

    name: Literal["cremad"] = "cremad"
    root: str = Field("data/cremad", description="folder that holds VideoFlash or face_aligned")
    clips: str | None = Field(None, description="folder under root; none = face_aligned, or else VideoFlash")
    actors: tuple[int, ...] = Field((), description="actors to read, from 1001 to 1091; none = all")


def read(config: CremadConfig, progress: Progress | None = None) -> Manifest:
    """Return the clips with emotion, actor and published fold, all told by their names."""
    actors = check_chosen("CREMA-D", "actors", config.actors, ACTORS)
    wanted = {name: columns(name) for actor in actors for name in names(actor)}
    root = Path(config.root)
    found = find_clips(
        "CREMA-D",
        root,
        (config.clips,) if config.clips else ("face_aligned", "VideoFlash"),
        ("*",),
        official_name,
        f"{root}/VideoFlash/1001_DFA_ANG_XX.flv or {root}/face_aligned/1001_DFA_ANG_XX/*.jpg "
        "(https://github.com/CheyneyComputerScience/CREMA-D)",
    )
    found = found._replace(paths={name: path for name, path in found.paths.items() if int(name[:4]) in actors})
    _check_downloaded(root, found)
    return build_labelled(config, "CREMA-D", CLASSES, wanted, found, progress=progress)


def names(actor: int) -> list[str]:
    """Return the names of an actor's clips."""
    takes = ((emotion, level) for emotion in CLASSES for level in (("XX",) if emotion == "NEU" else LEVELS))
    found = [f"{actor}_IEO_{emotion}_{level}" for emotion, level in takes]
    found += [f"{actor}_{sentence}_{emotion}_XX" for sentence, emotion in product(SENTENCES[1:], CLASSES)]
    return sorted(set(found) - ABSENT)


def columns(name: str) -> dict[str, str | int]:
    """Return what a clip's name tells: emotion, actor, and through the actor the fold."""
    actor, _, emotion, _ = name.split("_")
    fold = next(number for number, actors in enumerate(FOLDS, start=1) if int(actor) in actors)
    return {"label": CLASSES.index(emotion), "subject": actor, "fold": fold}


def official_name(path: str) -> str | None:
    """Return a clip's name in the owner's spelling, or None where it is no clip's."""
    match = re.fullmatch(r"(\d{4}_[a-z]{3}_[a-z]{3})_(lo|md|hi|xx?)", path.strip(), re.IGNORECASE)
    if match is None:
        return None
    level = match[2].upper()
    return f"{match[1].upper()}_{'XX' if level == 'X' else level}"  # 1040_ITH_SAD_X.wav exists beside its XX video


def _check_downloaded(root: Path, found: Found) -> None:
    """Raise DatasetError where the files are what git leaves behind without git-lfs: small texts in their place."""
    first = root / next(iter(found.paths.values()), ".")
    if first.is_file():
        with first.open("rb") as stream:
            if stream.read(24) == b"version https://git-lfs.":
                raise DatasetError(
                    f"CREMA-D's videos must be downloaded, but {first} only says where git-lfs has it: run `git lfs "
                    "pull` in the repository that was cloned"
                )
