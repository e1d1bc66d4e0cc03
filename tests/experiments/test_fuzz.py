"""No broken file ends, hangs or escapes the record of what reads it: a small round of the benchmark, another seed."""

from pathlib import Path

import pytest

from mien.data_pipelines import face_worker, faces
from mien.data_pipelines.face_worker import GuardConfig, Job
from mien.data_pipelines.faces import FacesConfig
from mien.data_pipelines.isolation import close
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.experiments.benchmarks import damage, fuzz
from mien.experiments.benchmarks.damage import Broken
from mien.experiments.benchmarks.fuzz import FuzzConfig

FILES = 42  # two of each kind


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "files"


@pytest.fixture(scope="module")
def broken(root: Path) -> list[Broken]:
    return damage.break_files(root, FILES, seed=1)


def all_told(stage: str, broken: list[Broken], outcomes: fuzz.Outcomes) -> None:
    found = fuzz.figures(stage, broken, outcomes)
    assert found["without a word"] == found["ended or hung"] == []
    assert found["read"] + found["with a reason"] == found["files"]
    assert found["read"] > 0 and found["with a reason"] > found["files"] / 2


@pytest.mark.ray
def test_every_broken_file_is_read_or_in_the_record_at_every_stage(
    ray_cluster: None, root: Path, broken: list[Broken]
) -> None:
    manifest = damage.manifest_of(root, broken, whole=len(broken))
    config = FuzzConfig(files=FILES)
    read = ReadConfig(sampling=SamplingConfig(frames=4, stride=2), size=16, root=manifest.root)
    all_told("prepare", broken, fuzz.prepare(root, broken))
    all_told("audit", broken, fuzz.audit(manifest))
    close()
    all_told("train", broken, fuzz.train(manifest, read, config))
    all_told("evaluate", broken, fuzz.evaluate(manifest, read, config))
    all_told("relabel", broken, fuzz.relabel(manifest, read))


def test_footage_is_cropped_past_broken_files(root: Path, broken: list[Broken], tmp_path: Path) -> None:
    raw = [one for one in broken if one.kind != "shard" and one.damage != "name not UTF-8"]
    jobs = [Job(str(root / one.path), one.path) for one in raw]
    settings = FacesConfig.model_validate({"detector": "whole", "size": 16, "sheet_frames": 1})
    face_worker.crop_all(jobs, tmp_path, settings, GuardConfig(silent_seconds=30))
    records = {job.name: faces.read_record(tmp_path, job.name) or {} for job in jobs}
    reasons = {name: record.get("reason") or fuzz.READ for name, record in records.items() if record}
    all_told("crop faces", broken, reasons)


def test_the_same_seed_breaks_the_same_files_alike(root: Path, broken: list[Broken], tmp_path: Path) -> None:
    again = damage.break_files(tmp_path / "files", FILES, seed=1)
    assert again == broken
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.parent.name != "parts":  # those tables name the clips by where they stand
            assert (tmp_path / "files" / path.relative_to(root)).read_bytes() == path.read_bytes(), path


def test_a_file_without_a_word_is_found() -> None:
    broken = [Broken("a.mp4", "mp4", "text"), Broken("b.mp4", "mp4", "text"), Broken("c.mp4", "mp4", "text")]
    found = fuzz.figures("train", broken, {"a.mp4": fuzz.READ, "c.mp4": "ended the process that read it, or hung"})
    assert found["without a word"] == ["b.mp4"] and len(found["ended or hung"]) == 1
    assert (found["files"], found["read"], found["with a reason"]) == (3, 1, 1)
