"""What readers of labelled sets share: where the clips lie, which of them are there, and the manifest of those.

A clip is a video, as owners ship them, or a folder of frames, as the literature aligns faces; both have one id. What
is listed but not there, or cannot be read, stops the reader unless it is told to go on without.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from mien.data_pipelines.decode import DecodeError, natural
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.probing import DatasetError, Progress, listed, probe_all
from mien.data_pipelines.video_files import VIDEOS


class LabelledConfig(BaseModel, frozen=True, extra="forbid"):
    """The settings of every labelled set; each has its own name, and says what its root holds."""

    name: str
    root: str
    allow_missing: bool = Field(False, description="leave out clips that are missing or unreadable, and count them")
    threads: int = Field(8, ge=1, description="clips looked at side by side")


class Found(NamedTuple):
    """The clips on disk."""

    folder: str  # under root, where they were looked for
    paths: dict[str, str]  # under root, by the clip's id
    note: str = ""  # what was taken, for the manifest


def find_clips(
    title: str,
    root: Path,
    folders: Sequence[str],
    patterns: Sequence[str],
    clip_id: Callable[[str], str | None],
    lies: str,
) -> Found:
    """Return the clips in the first of `folders` (under `root`) that holds any, in natural order.

    `patterns` lead from such a folder to its clips. `clip_id` tells a clip's id from its path without a video's
    suffix, or None where it is no clip of the dataset. Raises DatasetError where there is none; `lies` says how the
    dataset must lie and where to get it.
    """
    for place, folder in enumerate(folders):
        entries = [path for pattern in patterns for path in (root / folder).glob(pattern) if _may_be_clip(path)]
        paths: dict[str, str] = {}
        others = []
        for path in sorted((path.relative_to(root).as_posix() for path in entries), key=natural):
            inside = path if folder == "." else path[len(Path(folder).as_posix()) + 1 :]
            clip = clip_id(without_suffix(inside))
            if clip is None:
                others.append(path)
            elif paths.setdefault(clip, path) != path:
                raise DatasetError(
                    f"a clip of {title} must lie in one place, but {clip} lies in {paths[clip]} and in {path}, under "
                    f"{root}: take one of the two away, or set clips to the folder of one"
                )
        if paths:
            besides = [other for other in folders[place + 1 :] if other != "." and (root / other).is_dir()]
            also = f"; set clips to read {' or '.join(besides)} instead" if besides else ""
            left_out = f"; left out: {len(others)} of other names, such as {others[0]}" if others else ""
            kinds = {"videos" if without_suffix(path) != path else "frame folders" for path in paths.values()}
            where = "root" if folder == "." else folder
            return Found(folder, paths, f"clips are the {' and '.join(sorted(kinds))} in {where}{also}{left_out}")
    raise DatasetError(
        f"{title} must lie as {lies}; but there is no such clip under "
        f"{' or '.join(str((root / folder).absolute()) for folder in folders)}: get the data, or set root or clips"
    )


def build_labelled(
    config: LabelledConfig,
    title: str,
    classes: Sequence[str],
    wanted: Mapping[str, Mapping[str, Any]],
    found: Found,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of the clips in `wanted`, the columns of each by its id; notes say what is left out.

    Raises DatasetError where a wanted clip is missing or unreadable, unless the settings allow it.
    """
    root = Path(config.root)
    at = "" if found.folder == "." else f"{found.folder}/"
    rejected = [Rejected(at + clip, "is missing") for clip in wanted if clip not in found.paths]
    probes = probe_all((found.paths[clip] for clip in wanted if clip in found.paths), root, config.threads, progress)
    rejected += [Rejected(path, probe.reason) for path, probe in probes.items() if isinstance(probe, DecodeError)]
    if rejected and not config.allow_missing:
        raise DatasetError(
            f"every labelled clip of {title} must be readable, but {len(rejected)} of {len(wanted)} are not under "
            f"{root}: repair them, or set allow_missing to leave them out of the folds:{listed(rejected)}"
        )
    unlisted = [path for clip, path in found.paths.items() if clip not in wanted]
    left_out = [f"left out: {len(unlisted)} clips that are not listed, such as {unlisted[0]}"] if unlisted else []
    rows = []
    for clip, columns in wanted.items():
        probe = probes.get(found.paths.get(clip, ""))
        if probe is not None and not isinstance(probe, DecodeError):
            first = {"video": clip, "path": found.paths[clip], "dataset": config.name}
            rows.append({**first, **columns, **probe._asdict()})
    return build(rows, classes, root, config.name, rejected, [*notes, *filter(None, [found.note]), *left_out])


def check_chosen(title: str, setting: str, chosen: Sequence[int], known: Sequence[int]) -> list[int]:
    """Return the persons that are read: the chosen ones, or all who are known where none is chosen."""
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise DatasetError(
            f"{setting} must be among {known[0]} to {known[-1]}, the {len(known)} of {title}, but got "
            f"{', '.join(map(str, unknown))}: set {setting} to some of them, or leave it out to read all"
        )
    return sorted(set(chosen)) or list(known)


def without_suffix(path: str) -> str:
    """Return a video's path without its suffix, any other path as it is."""
    suffix = Path(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in VIDEOS else path


def _may_be_clip(path: Path) -> bool:
    return not path.name.startswith(".") and (path.suffix.lower() in VIDEOS or path.is_dir())
