"""eNTERFACE'05 (Martin et al., ICDEW 2006): 43 subjects react in six emotions, five sentences each; 1,287 clips.

    ROOT/enterface database/subject 1/anger/sentence 1/s1_an_1.avi      as its owner ships it
    ROOT/face_aligned/subject_1/anger/sentence_1/s1_an_1/*.jpg          aligned faces, as the literature uses

Subject, emotion and sentence are told by the folders, for the files' own names are not all of one form. The subjects'
numbers go to 44; the videos of subject 6 stand in no sentence folders and are left out, as published. 43 x 6 x 5 is
1,290: three sentences are not in the published set.

Published are five subject-disjoint folds that test 270, 270, 267, 270 and 210 clips (spec 9.2). Which subjects those
are is not in our sources. The folds here are runs of subjects in the order of their numbers (`FOLDS`), the only such
runs of those sizes: 9, 9, 9, 9 and 7 subjects of 30 clips, the three absent sentences in the third, where subject 23
is, who is told to lack some. That the sizes agree speaks for them and does not prove them.
"""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mien.data_pipelines.labelled_clips import LabelledConfig, build_labelled, check_chosen, find_clips
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.probing import Progress

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
SUBJECTS = tuple(number for number in range(1, 45) if number != 6)
SENTENCES = range(1, 6)
FOLDS = (range(1, 11), range(11, 20), range(20, 29), range(29, 38), range(38, 45))
ABSENT, ABSENT_FOLD = 3, 3  # so many sentences lack in the published set, all tested in this fold

Sentence = tuple[int, str, int]  # subject, emotion, sentence


class Enterface05Config(LabelledConfig, frozen=True):
    """Where eNTERFACE'05 is."""

    name: Literal["enterface05"] = "enterface05"
    root: str = Field("data/enterface05", description="folder that holds the subjects' folders, or what holds them")
    clips: str | None = Field(
        None, description="folder of the subjects' folders under root; none = face_aligned, enterface database or root"
    )
    subjects: tuple[int, ...] = Field((), description="subjects to read, from 1 to 44 without 6; none = all")


def read(config: Enterface05Config, progress: Progress | None = None) -> Manifest:
    """Return the clips with emotion, subject and fold; a note names the sentences that the published set lacks."""
    subjects = check_chosen("eNTERFACE'05", "subjects", config.subjects, SUBJECTS)
    root = Path(config.root)
    found = find_clips(
        "eNTERFACE'05",
        root,
        (config.clips,) if config.clips else ("face_aligned", "enterface database", "."),
        # The clips, and what stands in fewer folders, which a note then counts.
        ("[Ss]ubject*/*/*/*", "[Ss]ubject*/*/*.*", "[Ss]ubject*/*.*"),
        clip_id,
        f"{root}/enterface database/subject 1/anger/sentence 1/s1_an_1.avi or "
        f"{root}/face_aligned/subject_1/anger/sentence_1/s1_an_1/*.jpg (https://enterface.net/enterface05)",
    )
    sentences = {clip: sentence_of(clip) for clip in found.paths}
    chosen = {clip: sentence for clip, sentence in sentences.items() if sentence[0] in subjects}
    found = found._replace(paths={clip: found.paths[clip] for clip in chosen})
    gone, absent = split_absent(set(chosen.values()), subjects)
    notes = [f"not there, as in the published set: {', '.join(folder_of(one) for one in absent)}"] if absent else []
    wanted: dict[str, dict[str, Any]] = {clip: columns(sentence) for clip, sentence in chosen.items()}
    wanted |= {folder_of(sentence): columns(sentence) for sentence in gone}
    return build_labelled(config, "eNTERFACE'05", CLASSES, wanted, found, notes, progress)


def split_absent(present: set[Sentence], subjects: Sequence[int]) -> tuple[list[Sentence], list[Sentence]]:
    """Return the sentences that are missing, and those that are not there because the published set lacks them."""
    absent = [one for one in product(subjects, CLASSES, SENTENCES) if one not in present]
    known = [one for one in absent if fold_of(one[0]) == ABSENT_FOLD]
    if len(known) > ABSENT:  # which of them the published set lacks cannot be told
        known = []
    return [one for one in absent if one not in known], known


def columns(sentence: Sentence) -> dict[str, str | int]:
    """Return the label, subject and fold of a sentence."""
    subject, emotion, _ = sentence
    return {"label": CLASSES.index(emotion), "subject": str(subject), "fold": fold_of(subject)}


def fold_of(subject: int) -> int:
    """Return the fold that tests a subject."""
    return next(number for number, subjects in enumerate(FOLDS, start=1) if subject in subjects)


def clip_id(path: str) -> str | None:
    """Return `subject_1/anger/sentence_1/s1_an_1` however the folders are spelled; None where it is no such clip."""
    match = re.fullmatch(rf"subject[ _]*(\d+)/({'|'.join(CLASSES)})/sentence[ _]*(\d+)/(.+)", path, re.IGNORECASE)
    if match is None or int(match[1]) not in SUBJECTS or int(match[3]) not in SENTENCES:
        return None
    return f"{folder_of((int(match[1]), match[2].lower(), int(match[3])))}/{match[4]}"


def sentence_of(clip: str) -> Sentence:
    """Return subject, emotion and sentence of a clip's id."""
    subject, emotion, sentence, _ = clip.split("/")
    return int(subject.partition("_")[2]), emotion, int(sentence.partition("_")[2])


def folder_of(sentence: Sentence) -> str:
    """Return the first part of the id of a sentence's clip."""
    return "subject_{}/{}/sentence_{}".format(*sentence)
