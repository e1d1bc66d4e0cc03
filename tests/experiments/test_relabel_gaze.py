"""relabel_gaze.py: gaze for every frame, whatever a run's answers are about; stopped and gone on; what it refuses."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mien.data_pipelines import annotation_files, reading
from mien.data_pipelines.gaze_labels import with_gaze
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.sampling import SamplingConfig, ending_indices
from mien.data_pipelines.unreadable import DroppedTooManyError
from mien.data_pipelines.windows import local_frames
from mien.experiments import finetune, relabel_gaze
from mien.experiments.finetune import load_run
from mien.experiments.relabel_gaze import RelabelConfig, opened
from mien.models.gaze import angle_between
from mien.platform.config import ConfigError
from mien.platform.parts import PartsError
from mien.platform.run import RunError, records

CLIPS = 12
SETTINGS = ("part_clips=5", "batch_size=8", "stream.task_cpus=0.5")


@pytest.fixture
def manifest(world: Path, tmp_path: Path) -> Path:
    """Return a manifest of twelve clips of the world, of four frames or, where the number is odd, of three."""
    whole = Manifest.read(world / "manifest.parquet").take(range(CLIPS))
    place = whole.table.column_names.index("frames")
    frames = pa.array([4 - row % 2 for row in range(CLIPS)], pa.int64())
    table = whole.table.set_column(place, whole.table.schema.field("frames"), frames)
    made = Manifest(table, whole.classes, str(shutil.copytree(whole.root, tmp_path / "copy")), "toy")
    made.write(tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let frames come without Ray, which tests/data_pipelines/test_windows.py finds to be the same."""

    def frames(manifest: Manifest, rows: np.ndarray, read: reading.ReadConfig, config: Any) -> Iterator[reading.Batch]:
        return local_frames(manifest, rows, read, batch_frames=7)

    monkeypatch.setattr(relabel_gaze.clips, "video_frames", frames)


@pytest.fixture
def relabel(finetuned: Path, manifest: Path, tmp_path: Path, ray_cluster: None) -> Callable[..., Path]:
    """Return a function that relabels with further settings, and gives the folder."""

    def call(*words: str, run: Path = finetuned, folder: str = "gaze") -> Path:
        given = [f"checkpoint={run}", f"manifest={manifest}", "--output", str(tmp_path / folder)]
        relabel_gaze.main([*given, *SETTINGS, *words])
        return tmp_path / folder

    return call


def predicted(run: Path, manifest: Path, windows: list[list[int]], row: int) -> torch.Tensor:
    """Return the answers of a run's own `predict` to windows of one clip, plain and mirrored."""
    _, fold, task = load_run(run)
    made = Manifest.read(manifest)
    read = fold.read.model_copy(update={"root": made.root})
    frames = reading.read_frames(made.row(row), 0, made.row(row)["frames"], read)
    clip = torch.from_numpy(np.stack([frames[window] for window in windows]))
    plain = task.predict({"clip": clip})["gaze"]
    mirrored = task.predict({"clip": clip.flip(3)})["gaze"] * torch.tensor([1, -1])
    return torch.cat([plain, mirrored])


def gaze_of(folder: Path, row: int) -> torch.Tensor:
    frames = pq.read_table(folder / "frames.parquet").to_pylist()
    return torch.tensor([(frame["pitch"], frame["yaw"]) for frame in frames if frame["row"] == row])


@pytest.mark.ray
def test_every_frame_is_labelled_and_the_clips_own_gaze_is_kept_apart(
    relabel: Callable[..., Path], finetuned: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = relabel("--csv")
    before, after = Manifest.read(manifest), Manifest.read(folder / "manifest.parquet")
    frames, known = pq.read_table(folder / "frames.parquet"), pq.read_table(folder / "clips.parquet")
    wanted = [(row, frame) for row in range(CLIPS) for frame in range(4 - row % 2)]
    assert list(zip(frames["row"].to_pylist(), frames["frame"].to_pylist(), strict=True)) == wanted
    assert frames["spread"].null_count == 0 and max(frames["spread"].to_pylist()) < np.sqrt(2)

    # Two windows' worth of answers, each also in a mirror, averaged as directions.
    answers = predicted(finetuned, manifest, [[0, 1, 2, 3]], row=0)
    assert angle_between(gaze_of(folder, 0), answers.mean(0, keepdim=True)).max() < 1e-3
    assert frames["spread"][0].as_py() == pytest.approx(float(angle_between(*answers)) / 2, abs=1e-4)
    answers = predicted(finetuned, manifest, [[0, 1, 2, 2]], row=1)
    assert angle_between(gaze_of(folder, 1), answers.mean(0, keepdim=True)).max() < 1e-3

    assert after.column("pitch") == known["pred_pitch"].to_pylist() and known["spread"].null_count == 0
    assert known["yaw"].to_pylist() == before.column("yaw") != after.column("yaw")
    # What the teacher does not know goes with its labels, and each frame's own angles do.
    assert after.column("gaze_spread") == known["spread"].to_pylist()
    for name in ("pitch", "yaw", "spread"):
        assert [value for clip in after.column(f"frame_{name}") for value in clip] == frames[name].to_pylist()
    new = {name for name in after.table.column_names if "pitch" in name or "yaw" in name or "spread" in name}
    for name in set(before.table.column_names) - new:
        assert before.column(name) == after.column(name)
    assert f"by {finetuned} (checkpoint step_00000006" in after.notes[-1] and before.fingerprint() in after.notes[-1]
    said = capsys.readouterr().out
    assert "12 clips have gaze now" in said and "against the own gaze of 12 clips" in said
    assert "shorter than what a clip covers: trained on 0%, here 50%" in said
    told = json.loads((folder / "compared.json").read_text())
    assert told["recorded"] and len(told["differences"]) == 1
    assert json.loads((folder / "agreement.json").read_text())["num_gazed"] == CLIPS

    lines, _ = annotation_files.read_records([folder / "csv" / "merged.csv"], "label_angles")
    assert len(lines) == len(wanted) and len(list((folder / "csv" / "videos").iterdir())) == CLIPS
    assert all(Path(after.root, line.path).is_file() for line in lines)
    assert [line.label for line in lines] == [before.column("label")[row] for row, _ in wanted]


@pytest.fixture
def run(recipes: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that fine-tunes another task than the recipe's, on the same backbone."""

    def call(*words: str, **task: Any) -> Path:
        tree = yaml.safe_load(recipes["finetune"].read_text())
        tree["task"] = task | {"backbone": tree["task"]["backbone"]}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        output = tmp_path / f"teacher_{len(list(tmp_path.glob('teacher_*')))}"
        finetune.main(["--config", str(tmp_path / "recipe.yaml"), "--output", str(output), *words])
        return output

    return call


@pytest.mark.ray
@pytest.mark.usefixtures("local")
def test_an_answer_goes_to_the_frames_that_it_is_about(
    relabel: Callable[..., Path], run: Callable[..., Path], manifest: Path, tmp_path: Path
) -> None:
    # Gaze360's clips end with the frame that bears the label, so each frame has a window of its own.
    teacher = run("data.sampling.rule=ending", name="gaze", pool="all")
    folder = relabel(run=teacher, folder="ending")
    windows = [ending_indices(end, SamplingConfig(frames=4)).tolist() for end in range(1, 5)]
    answers = predicted(teacher, manifest, windows, row=0)
    assert angle_between(gaze_of(folder, 0), answers.unflatten(0, (2, 4)).mean(0)).max() < 1e-3
    with pytest.raises(ConfigError, match=r"a window of consecutive frames for each frame; leave hop=2"):
        relabel("hop=2", run=teacher, folder="other")

    # An output for each frame: the frame's own.
    teacher = run(name="gaze", pool="patch", per_frame=True)
    folder = relabel("mirror=false", run=teacher, folder="frames")
    _, fold, task = load_run(teacher)
    made = Manifest.read(manifest)
    clip = reading.read_frames(made.row(0), 0, 4, fold.read.model_copy(update={"root": made.root}))
    of_frames = task.predict({"clip": torch.from_numpy(clip)[None]})["frame_gaze"][0]
    assert angle_between(gaze_of(folder, 0), of_frames).max() < 1e-3 and len(set(of_frames[:, 1].tolist())) > 1
    # One answer about a frame has no spread, which is not the same as a spread of 0.
    frames = pq.read_table(folder / "frames.parquet").to_pylist()
    assert all(frame["spread"] is None for frame in frames if frame["row"] == 0)


@pytest.mark.ray
@pytest.mark.usefixtures("local")
def test_a_stopped_relabelling_goes_on_to_the_same_tables(
    relabel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = relabel(folder="whole")
    calls = []
    real = relabel_gaze.predict.window_gaze

    def dying(*args: Any) -> np.ndarray:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as context:
        context.setattr(relabel_gaze.predict, "window_gaze", dying)
        with pytest.raises(SystemExit):
            relabel()
    assert "finished parts kept in" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"mirror: True there, False given"):
        relabel("mirror=false")
    folder = relabel()
    assert "relabelling 12/12" in capsys.readouterr().out
    one, two = (pq.read_table(place / "frames.parquet") for place in (whole, folder))
    assert one.select(["row", "video", "frame"]) == two.select(["row", "video", "frame"])
    for name in ("pitch", "yaw", "spread"):  # other windows stood in a batch, so the last bit may differ
        assert np.allclose(one[name].to_numpy(), two[name].to_numpy(), atol=1e-6)

    monkeypatch.setattr(relabel_gaze, "label", None)  # would fail if it were called
    assert not (folder / "csv").exists()
    assert (relabel("--csv") / "csv" / "merged.csv").is_file()


@pytest.mark.ray
@pytest.mark.usefixtures("local")
def test_an_unreadable_clip_is_reported_and_left_without_gaze(relabel: Callable[..., Path], manifest: Path) -> None:
    made = Manifest.read(manifest)
    for row in (6, 11):
        next(Path(made.root, made.row(row)["path"]).iterdir()).write_bytes(b"")
    with pytest.raises(DroppedTooManyError, match=r"stream\.max_dropped_ratio=0\.05 .* but 1 of 10 are"):
        relabel("stream.dropped_after=10", folder="strict")
    folder = relabel()
    found = Manifest.read(folder / "manifest.parquet")
    assert [row for row, pitch in enumerate(found.column("pitch")) if pitch is None] == [6, 11]
    assert [(clip["row"], clip["video"]) for clip in records(folder / "dropped.jsonl")] == [
        (row, made.row(row)["video"]) for row in (6, 11)
    ]
    assert {6, 11}.isdisjoint(pq.read_table(folder / "frames.parquet")["row"].to_pylist())


@pytest.mark.ray
@pytest.mark.usefixtures("local")
def test_parts_of_other_clips_are_not_gone_on_with(relabel: Callable[..., Path], manifest: Path) -> None:
    relabel()
    made = Manifest.read(manifest)
    with_gaze(made, np.zeros((CLIPS, 2)), "other").write(manifest)
    with pytest.raises(PartsError, match=r"manifest: \w+ there, \w+ now"):
        relabel()


def test_what_cannot_be_is_said_before_there_is_a_folder(
    finetuned: Path, world: Path, manifest: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    def refused(**given: Any) -> str:
        words = {"checkpoint": finetuned, "manifest": manifest} | given
        with pytest.raises(ValueError) as caught:
            relabel_gaze.main([*(f"{key}={value}" for key, value in words.items()), "--output", str(tmp_path / "no")])
        assert not (tmp_path / "no").exists()
        return str(caught.value)

    told = "checkpoint must be the folder of a finished fine-tuning (with a scores.json)"
    assert f"{told}, but {world}" in refused(checkpoint=world)
    assert "hop must be at most 4" in refused(hop=5)
    assert "must be a Parquet file" in refused(manifest=finetuned / "config.yaml")
    assert "schema version must be 1" in refused(manifest=finetuned / "predictions" / "val.parquet")
    assert "learned expression without it" in refused(checkpoint=run(name="expression"))
    with pytest.raises(ConfigError, match="checkpoint"):
        relabel_gaze.main([f"manifest={manifest}"])


def test_a_dry_run_tells_sizes_and_needs_no_clips_of_the_run(
    finetuned: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finetuned, tmp_path / "moved"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["manifest"] = "gone.parquet"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    relabel_gaze.main(["--checkpoint", str(run), "--manifest", str(manifest), "--dry-run"])
    said = capsys.readouterr().out
    assert "42, each read once and labelled" in said and "24 clips of 4x32x32, half of them mirrored" in said
    assert opened(RelabelConfig(checkpoint=str(run), manifest=str(manifest))).stride == 1
    with pytest.raises(SystemExit):
        relabel_gaze.main(["--help"])
    assert "--csv" in (said := capsys.readouterr().out) and "checkpoint (str) = (must be given)" in said
