"""Where the outputs of a video stand, several files of one name, and when they may be replaced."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mien.platform.config import ConfigError

KINDS = ("mp4", "csv", "parquet", "png", "json")  # the last is written last: where it is, all are whole


def named(place: Path, kind: str) -> Path:
    """Return one of the files of a place; a video's name may hold points of its own."""
    return place.with_name(f"{place.name}.{kind}")


def places(videos: Sequence[str], output: Path) -> list[tuple[Path, Path]]:
    """Return each video with the place of its outputs, less their endings; raises ConfigError for what cannot be."""
    found: list[tuple[Path, Path]] = []
    for video in videos:
        source = Path(video)
        if not source.exists():
            raise ConfigError(f"videos must exist, but there is none at {source.absolute()}")
        stem = source.stem or source.absolute().name
        while any(place.name == stem for _, place in found):  # of two of one name the second gets another
            stem += "_"
        for kind in KINDS:
            file = named(output / stem, kind)
            if file.exists() and file.samefile(source):
                raise ConfigError(f"{file} would be written over the video itself; give another --output")
        found.append((source, output / stem))
    return found


def earlier(place: Path, made_from: Mapping[str, Any], again: bool) -> dict[str, Any] | None:
    """Return the record of a video that is done already, or None; raises ConfigError where it is of other making."""
    there = [file for kind in KINDS if (file := named(place, kind)).exists()]
    if again or not there:
        return None
    record: dict[str, Any] = {}
    if named(place, "json").exists():
        record = json.loads(named(place, "json").read_text(encoding="utf-8"))
    if record.get("made_from") == made_from and len(there) == len(KINDS):
        return record
    raise ConfigError(
        f"{there[0]} is there already, made with other settings, from another file, or unfinished; give --again to "
        "replace it, or another --output"
    )
