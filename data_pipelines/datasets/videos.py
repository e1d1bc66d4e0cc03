"""Any folder of videos, found at any depth: for pretraining, prediction and trials.

A long video can be cut into clips; they share the file and differ in `start`, and splits keep them together.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.probing import DatasetError, Progress, listed, probe_all
from mien.data_pipelines.video_files import VIDEOS


class VideosConfig(BaseModel, frozen=True, extra="forbid"):
    """Where the videos are and how they are cut."""

    name: Literal["videos"] = "videos"
    root: str = Field(description="folder that is searched for videos, with all folders in it")
    dataset: str = Field("videos", description="what the dataset is called in tables")
    clip_frames: int | None = Field(None, ge=1, description="cut each video into clips of so many frames; none = whole")
    hop_frames: int | None = Field(None, ge=1, description="frames between the starts of clips; none = clip_frames")
    subject_from_folder: bool = Field(False, description="the first folder's name is the person")
    threads: int = Field(8, ge=1, description="files looked at side by side")

    @model_validator(mode="after")
    def _hops_need_clips(self) -> "VideosConfig":
        if self.hop_frames and not self.clip_frames:
            raise ValueError(f"hop_frames needs clip_frames, but got hop_frames={self.hop_frames} alone: set both")
        return self


def read(config: VideosConfig, progress: Progress | None = None) -> Manifest:
    """Return a row for each video, or for each clip cut from one; unreadable files are in `rejected`."""
    root = Path(config.root)
    if not root.is_dir():
        raise DatasetError(f"a folder of videos must exist, but there is none at {root.absolute()}: set root")
    paths = find_videos(root)
    if not paths:
        raise DatasetError(
            f"a folder of videos must hold some ({' '.join(sorted(VIDEOS))}), at any depth, but there is none under "
            f"{root.absolute()}: set root to where they are, or read frame folders through an annotation file"
        )
    rows, rejected = video_rows(paths, root, config.threads, progress)
    cut = []
    for row in rows:
        if config.subject_from_folder and "/" in row["path"]:
            row["subject"] = row["path"].split("/")[0]
        cut += _cut(row, config.clip_frames, config.hop_frames or config.clip_frames)
    return build([{**row, "dataset": config.dataset} for row in cut], (), root, config.dataset, rejected)


def find_videos(folder: Path) -> list[str]:
    """Return the videos in a folder and its folders, relative to it, sorted; hidden files are no videos."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def video_rows(
    paths: list[str], root: Path, threads: int, progress: Progress | None
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Return a row, without its dataset, for each video that can be read, and the others with their reasons."""
    rows, rejected = [], []
    for path, found in probe_all(paths, root, threads, progress).items():
        if isinstance(found, DecodeError):
            rejected.append(Rejected(path, found.reason))
        else:
            rows.append({"video": path, "path": path, **found._asdict()})
    if not rows:
        raise DatasetError(
            f"some video must be readable, but none of {len(paths)} under {root.absolute()} is: repair them, or set "
            f"root to another folder:{listed(rejected)}"
        )
    return rows, rejected


def _cut(row: dict[str, Any], clip_frames: int | None, hop_frames: int | None) -> list[dict[str, Any]]:
    """Return the row's clips of `clip_frames` frames; a video that is not longer stays whole."""
    if not clip_frames or not hop_frames or row["frames"] <= clip_frames:
        return [row]
    starts = range(0, row["frames"] - clip_frames + 1, hop_frames)
    return [{**row, "video": f"{row['video']}#{start}", "start": start, "frames": clip_frames} for start in starts]
