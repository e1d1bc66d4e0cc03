"""RAVDESS (Livingstone and Russo, PLOS ONE 2018): 24 actors, eight emotions; of it the spoken clips without sound.

    ROOT/Actor_01/02-01-06-01-02-01-01.mp4                  as its owner ships it (Video_Speech_Actor_01.zip, ...)
    ROOT/face_aligned/Actor_01/02-01-06-01-02-01-01/*.jpg   aligned faces, as the literature uses

A name is modality (02 = picture alone), channel (01 = speech), emotion, intensity, statement, repetition, actor, two
digits each; neutral has no strong intensity, so an actor has 60 clips and all have 1,440. The same archives hold each
clip with its sound (01-01), which has the same pictures and is left out, as published. Folds as published: six of four
actors.
"""

import re
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field

from mien.data_pipelines.labelled_clips import LabelledConfig, build_labelled, check_chosen, find_clips
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.probing import Progress

CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")  # codes 01..08
ACTORS = range(1, 25)
ACTORS_A_FOLD = 4


class RavdessConfig(LabelledConfig, frozen=True):
    """Where RAVDESS is."""

    name: Literal["ravdess"] = "ravdess"
    root: str = Field("data/ravdess", description="folder that holds Actor_01 to Actor_24, or face_aligned with them")
    clips: str | None = Field(None, description="folder of the actors' folders under root; none = face_aligned or root")
    actors: tuple[int, ...] = Field((), description="actors to read, from 1 to 24; none = all")


def read(config: RavdessConfig, progress: Progress | None = None) -> Manifest:
    """Return the video-only speech clips with emotion, actor and published fold, all told by their names."""
    actors = check_chosen("RAVDESS", "actors", config.actors, ACTORS)
    wanted = {name: columns(name) for actor in actors for name in names(actor)}
    root = Path(config.root)
    found = find_clips(
        "RAVDESS",
        root,
        (config.clips,) if config.clips else ("face_aligned", "."),
        ("[Aa]ctor_*/*", "Video_Speech_*/[Aa]ctor_*/*"),  # an archive may have been unpacked into its own folder
        speech_video,
        f"{root}/Actor_01/02-01-06-01-02-01-01.mp4 or {root}/face_aligned/Actor_01/02-01-06-01-02-01-01/*.jpg "
        "(https://zenodo.org/record/1188976, the archives Video_Speech_Actor_NN.zip)",
    )
    found = found._replace(paths={name: path for name, path in found.paths.items() if int(name[-2:]) in actors})
    return build_labelled(config, "RAVDESS", CLASSES, wanted, found, progress=progress)


def names(actor: int) -> list[str]:
    """Return the names of an actor's video-only speech clips."""
    codes = product(range(1, len(CLASSES) + 1), (1, 2), (1, 2), (1, 2))
    return [
        f"02-01-{emotion:02d}-{intensity:02d}-{statement:02d}-{repetition:02d}-{actor:02d}"
        for emotion, intensity, statement, repetition in codes
        if (emotion, intensity) != (1, 2)
    ]


def columns(name: str) -> dict[str, str | int]:
    """Return what a clip's name tells: emotion, actor, and through the actor the fold."""
    fields = name.split("-")
    return {"label": int(fields[2]) - 1, "subject": fields[6], "fold": (int(fields[6]) - 1) // ACTORS_A_FOLD + 1}


def speech_video(path: str) -> str | None:
    """Return the name of a video-only speech clip, or None where it is something else."""
    name = path.rpartition("/")[2].strip()
    return name if re.fullmatch(r"02-01(-\d\d){5}", name) else None
