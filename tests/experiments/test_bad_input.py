"""Bad input ends a program with one message: the rule, what was given, what to do; exit code 2 and no traceback.

Where each case is tested (`unit`: the error and its words; `here` or a program's file: as whoever calls a program
meets it; a file without a room stands here in tests/experiments):

    missing dataset root, empty folder      unit data_pipelines/test_datasets; here
    folder with frames of two sizes         unit data_pipelines/test_decode; here
    unpadded frame names (they work)        unit data_pipelines/test_decode
    path with a space (it works)            unit data_pipelines/test_decode; test_prepare; here
    truncated mp4, text renamed to .mp4     unit data_pipelines/test_decode, test_datasets; test_prepare; here
    zero-byte file                          unit data_pipelines/test_decode, test_clips; test_pretrain; here
    one-frame video (it works)              unit data_pipelines/test_decode; here
    too few columns, label outside the      unit data_pipelines/test_datasets, test_manifest; here
        classes, NaN gaze
    too many unreadable clips               unit data_pipelines/test_unreadable, test_clips; test_pretrain; here
    checkpoint of another shape             unit platform/test_checkpoint, models/test_backbone, models/test_published;
                                            test_finetune; here
    pickle that would run code              unit platform/test_checkpoint, models/test_published; here
    corrupt checkpoint                      unit platform/test_checkpoint, platform/test_training; test_pretrain; here
    unknown or misspelt setting, alpha < 0, unit platform/test_config, models/test_lgi_former; test_tune_dfew; here
        region that does not divide the grid
    disk full in the run folder             unit platform/test_storage, test_checkpoint, test_run; here
    Ctrl-C                                  unit platform/test_run, platform/test_trainer; here
"""

import argparse
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from mien.data_pipelines import reading
from mien.data_pipelines.manifest import Manifest
from mien.experiments import finetune, prepare, pretrain
from mien.platform import config as settings
from mien.platform.config import run_program
from mien.platform.run import records

Refuse = Callable[..., str]
Weights = Callable[[Path], dict[str, Tensor]]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Return a function that calls a program as a shell does and gives the message it must end with."""

    def call(program: ModuleType, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_program(program.main)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and "Traceback" not in said
        return said.removeprefix("error: ")

    return call


def write_video(path: Path, frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(frames):
            picture = np.full((32, 32, 3), 40 * (index % 6), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def dfew(world: Path, tmp_path: Path) -> Path:
    """Return a copy of the world in DFEW's layout, to be damaged."""
    return Path(shutil.copytree(world / "world" / "dfew", tmp_path / "dfew"))


# What prepare.py meets


def test_a_dataset_that_is_not_there_or_empty_says_where_it_looked(refused: Refuse, tmp_path: Path) -> None:
    said = refused(prepare, "dfew", f"root={tmp_path / 'nowhere'}")
    assert f"there is no {tmp_path / 'nowhere' / 'Clip' / 'jpg_256'}" in said and "or set root" in said
    (tmp_path / "empty").mkdir()
    said = refused(prepare, "videos", f"root={tmp_path / 'empty'}")
    assert "must hold some (" in said and str(tmp_path / "empty") in said and "set root" in said
    assert not (tmp_path / "output").exists()


def test_a_folder_with_frames_of_two_sizes_or_none_is_named(refused: Refuse, dfew: Path) -> None:
    clips = dfew / "Clip" / "jpg_256"
    cv2.imwrite(str(clips / "00003" / "00004.jpg"), np.zeros((16, 16, 3), np.uint8))
    shutil.rmtree(clips / "00005")
    (clips / "00005").mkdir()
    said = refused(prepare, "dfew", f"root={dfew}")
    assert "2 of 70 are not" in said and "set allow_missing" in said
    assert "jpg_256/00003: " in said and "size" in said and "jpg_256/00005: " in said


def test_videos_that_are_all_broken_are_listed_with_their_reasons(refused: Refuse, tmp_path: Path) -> None:
    root = tmp_path / "my videos"
    cut = write_video(root / "cut.mp4", frames=8)
    cut.write_bytes(cut.read_bytes()[:-100])
    (root / "text.mp4").write_text("a shopping list")
    (root / "zero.mp4").write_bytes(b"")
    said = refused(prepare, "videos", f"root={root}")
    assert "none of 3" in said
    for words in ("cut.mp4: is truncated", "text.mp4: is not an mp4 file", "zero.mp4: is empty (0 bytes)"):
        assert words in said


@pytest.mark.parametrize(
    ("line", "words", "told"),
    [
        ("two", "", "labels.txt:2: a line is a path and one to three numbers"),
        ("two 2", "classes=[calm,glad]", "labels.txt:2: a label is below 2"),
        ("two 1 nan 0", "columns=label_angles", "labels.txt:2: numbers are finite"),
    ],
)
def test_a_line_of_annotations_that_cannot_be_used_is_named(
    refused: Refuse, tmp_path: Path, line: str, words: str, told: str
) -> None:
    first = "one 0 0 0" if "angles" in words else "one 0"
    (tmp_path / "labels.txt").write_text(f"{first}\n{line}\n")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "1.jpg"), np.zeros((16, 16, 3), np.uint8))
    labels = [f"root={tmp_path}", f"annotations={tmp_path / 'labels.txt'}"]
    assert told in refused(prepare, "annotations", *labels, *filter(None, [words]))


@pytest.mark.parametrize("rule", ["pretrain", "finetune"])
def test_a_video_of_one_frame_is_a_clip_of_that_frame(tmp_path: Path, rule: str) -> None:
    write_video(tmp_path / "one.mp4", frames=1)
    prepare.main(["videos", f"root={tmp_path}", "--output", str(tmp_path / "out")])
    manifest = Manifest.read(tmp_path / "out" / "manifest.parquet")
    program: Any = pretrain.DataConfig() if rule == "pretrain" else finetune.DataConfig()
    read = reading.for_model(program.sampling, program.augment, frames=16, size=32, root=manifest.root)
    ((batch, dropped),) = reading.local_batches(manifest, [0], 2, 0, read, steps=1)
    assert batch["clip"].shape == (2, 16, 32, 32, 3) and not dropped
    views = next(reading.local_views(manifest, [0], 8, read))
    assert (views["clip"] == views["clip"][:, :1]).all()


# What a training run meets


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim.lrr=1"], "unknown setting optim.lrr; did you mean optim.lr?"),
        (["--lr", "1"], "unknown setting lr; did you mean optim.lr?"),
        (["optim.lr"], "expected key=value or --key value, got 'optim.lr'"),
        (["task.name=expresion"], "task.name must be one of expression, gaze, combined; got 'expresion' (did you mean"),
        (["task.alpha=-1"], "task.alpha: Input should be greater than or equal to 0; got -1"),
        (["task.backbone.encoder.region=[2,3,4]"], "region must divide the grid of tubes along time, height and width"),
        (["optim.warmup_steps=6"], "the warm-up must be shorter than the run, but it has 6 of 6 steps"),
        (["data.fold=9"], "the fold must be one of [1, 2, 3, 4, 5]"),
        (["data.manifest=nowhere.parquet"], "there is no file nowhere.parquet: prepare it first"),
        (["pretrained=nowhere"], "the folder of a run that has one, but nowhere does not exist"),
        (["data.sampling.frames=8"], "a clip has as many frames as the model takes, 4, but sampling.frames is 8"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_written(
    refused: Refuse, recipes: dict[str, Path], tmp_path: Path, words: list[str], told: str
) -> None:
    given = ["--config", recipes["finetune"], "--output", tmp_path / "run", *words]
    assert told in refused(finetune, *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.manifest=nowhere.parquet"], "there is no file nowhere.parquet: prepare it first"),
        (["trainer.workers=9"], "loop.batch_size=8 and there are 9: set it to 9 or more"),
        (["optim.warmup_steps=9"], "the warm-up must be shorter than the run, but it has 9 of 6 steps"),
        (["task.mask.ratio=0.01"], "a mask must hide something"),
    ],
)
def test_pretraining_that_cannot_be_is_refused_before_ray_starts(
    refused: Refuse, recipes: dict[str, Path], tmp_path: Path, words: list[str], told: str
) -> None:
    assert told in refused(pretrain, "--config", recipes["pretrain"], "--output", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_a_pretrained_file_that_would_run_code_or_is_none_of_ours_is_refused(
    refused: Refuse, recipes: dict[str, Path], tmp_path: Path
) -> None:
    run = ["--config", recipes["finetune"], "--output", tmp_path / "run"]
    torch.save({"model": {}, "args": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    said = refused(finetune, *run, f"pretrained={tmp_path / 'bomb.pth'}")
    assert "it was not opened: loading it could run code" in said and "save its weights alone" in said
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))  # it would have
    assert (tmp_path / "ran").exists()

    (tmp_path / "cut.pth").write_bytes((tmp_path / "bomb.pth").read_bytes()[:-64])
    assert "is damaged" in refused(finetune, *run, f"pretrained={tmp_path / 'cut.pth'}")
    torch.save({"model": {"fc.weight": torch.zeros(2, 2)}, "args": argparse.Namespace()}, tmp_path / "other.pth")
    assert "no weights of a known video model" in refused(finetune, *run, f"pretrained={tmp_path / 'other.pth'}")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_model_is_refused_and_left_as_it_is(
    refused: Refuse, recipes: dict[str, Path], finetuned: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finetuned, tmp_path / "run"))
    (folder / "scores.json").unlink()
    run = ["--config", recipes["finetune"], "--output", folder]
    said = refused(finetune, *run, "task.backbone.encoder.width=64")
    assert "task.backbone.encoder.width: 32 there, 64 given" in said and "another --output" in said
    # Someone who edits config.yaml to get past that is told by the checkpoint.
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("width: 32", "width: 64"))
    said = refused(finetune, *run, "task.backbone.encoder.width=64")
    assert "must be of this very model" in said and "(64," in said and "give the settings it was made with" in said


def test_a_corrupt_checkpoint_is_said_and_the_one_before_it_used(
    recipes: dict[str, Path], finetuned: Path, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finetuned, tmp_path / "run"))
    (folder / "scores.json").unlink()
    (folder / "checkpoints" / "step_00000006" / "loop.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step_00000006 is corrupt: loop\.pt.*going back to the checkpoint before it"):
        finetune.main(["--config", str(recipes["finetune"]), "--output", str(folder)])
    assert f"going on from {folder / 'checkpoints' / 'step_00000004'}" in capsys.readouterr().out
    assert all(torch.equal(value, weights(folder)[name]) for name, value in weights(finetuned).items())


@pytest.fixture
def moved(world: Path, dfew: Path) -> Iterator[list[str]]:
    """Return the settings for the copied clips, in a folder whose name has a space."""
    place = dfew.rename(dfew.with_name("my dfew"))
    yield [f"data.manifest={world / 'manifest.parquet'}", f"data.root={place}"]


def split_of(recipes: dict[str, Path]) -> finetune.Fold:
    return finetune.opened(settings.load(finetune.FinetuneConfig, recipes["finetune"], {}))[1]


def test_clips_in_a_folder_with_a_space_are_learned_and_a_missing_one_is_counted(
    recipes: dict[str, Path], moved: list[str], tmp_path: Path
) -> None:
    fold = split_of(recipes)
    lost = fold.manifest.row(int(fold.split.train[0]))["path"]
    shutil.rmtree(tmp_path / "my dfew" / lost)
    folder = tmp_path / "my run"
    finetune.main(["--config", str(recipes["finetune"]), "--output", str(folder), *moved])
    (dropped,) = records(folder / "dropped.jsonl")
    assert dropped["row"] == fold.split.train[0] and lost in dropped["path"]
    assert (folder / "scores.json").is_file()


def test_too_many_unreadable_clips_or_none_readable_end_a_run(
    refused: Refuse, recipes: dict[str, Path], moved: list[str], tmp_path: Path
) -> None:
    fold = split_of(recipes)
    for row in fold.split.train[:6]:
        (tmp_path / "my dfew" / fold.manifest.row(int(row))["path"] / "00002.jpg").write_bytes(b"")
    run = ["--config", recipes["finetune"], "--output", tmp_path / "run", *moved]
    said = refused(finetune, *run, "data.dropped_after=40", "data.sampling.stride=1")
    assert "at most data.max_dropped_ratio=0.05 of the clips may be unreadable" in said
    assert "prepare the manifest again without them" in said and "00002.jpg is empty" in said
    for row in fold.split.train:
        shutil.rmtree(tmp_path / "my dfew" / fold.manifest.row(int(row))["path"])
    assert "a batch must hold a readable clip" in refused(finetune, *run[:-3], tmp_path / "none", *moved)


def test_an_unreadable_clip_of_validation_ends_the_run_with_its_name(
    refused: Refuse, recipes: dict[str, Path], moved: list[str], tmp_path: Path
) -> None:
    fold = split_of(recipes)
    path = tmp_path / "my dfew" / fold.manifest.row(int(fold.split.val[3]))["path"] / "00001.jpg"
    path.write_text("a shopping list")
    said = refused(finetune, "--config", recipes["finetune"], "--output", tmp_path / "run", *moved)
    assert "every clip of an evaluation must be readable, but 1 are not" in said and "00001.jpg" in said
    assert not (tmp_path / "run" / "scores.json").exists()
    # Repaired, the run goes on with the weights it has.
    shutil.copy(path.with_name("00002.jpg"), path)
    finetune.main(["--config", str(recipes["finetune"]), "--output", str(tmp_path / "run"), *moved])


# What a machine does


def test_a_file_that_may_not_grow_ends_the_program_and_the_same_command_goes_on(
    program: Callable[..., "subprocess.Popen[str]"], recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["--config", str(recipes["finetune"]), "--output", str(tmp_path / "run")]
    started = program("finetune", *words, prefix="ulimit -f 64;")  # blocks of 512 or 1024 bytes: less than the weights
    said = started.communicate(timeout=100)[0]
    assert started.returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'run' / 'checkpoints'}: writing failed") and "same command" in last
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    finetune.main(words)
    assert (tmp_path / "run" / "scores.json").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of its own that holds 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_program_with_both_sizes(
    refused: Refuse, small_disk: Path, recipes: dict[str, Path]
) -> None:
    said = refused(finetune, "--config", recipes["finetune"], "--output", small_disk / "run")
    assert "the disk is full: " in said and "needed" in said and "free; put that right" in said
    assert "another --output" in said


@pytest.mark.ray
def test_a_full_disk_in_a_worker_is_told_in_the_same_words(
    ray_cluster: None, refused: Refuse, small_disk: Path, recipes: dict[str, Path]
) -> None:
    words = ["--config", recipes["pretrain"], "--output", small_disk / "run", "sheet_clips=0"]
    assert "checkpoints need" in refused(pretrain, *words)  # before anything starts
    said = refused(pretrain, *words, "--force")
    assert "the disk is full: " in said and "needed" in said and "another --output" in said


def test_ctrl_c_keeps_the_state_and_the_printed_command_goes_on(
    program: Callable[..., "subprocess.Popen[str]"], recipes: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "my run"
    # Enough steps that the signal comes in the middle; warm-up and schedule follow from their number.
    words = [
        "--config",
        str(recipes["finetune"]),
        "--output",
        str(folder),
        "loop.steps=4000",
        "loop.checkpoint_every=50",
    ]
    started = program("finetune", *words)
    until = time.monotonic() + 100
    while not list(folder.glob("checkpoints/step_*")) and time.monotonic() < until:
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=60)[0]
    assert started.returncode == 130 and "Traceback" not in said, said
    assert "finishing this step; Ctrl-C again stops at once" in said
    last = said.splitlines()[-1]
    newest = max((folder / "checkpoints").glob("step_*"))
    assert last.startswith(f"state kept at {newest}; resume with: python ")
    assert f"'{folder}'" in last and last.endswith("loop.steps=4000 loop.checkpoint_every=50")
    step = int(newest.name.removeprefix("step_"))
    assert records(folder / "metrics.jsonl")[-1]["step"] == step < 4000

    # The same command, cut short by a clip that is asked for two steps later.
    seen = []

    def stop(config: Any, fold: Any, run: Any, start_step: int, sources: Any) -> Iterator[Any]:
        seen.append(start_step)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as context, pytest.raises(InterruptedError):
        context.setattr(finetune, "training_batches", stop)
        finetune.main(words)
    assert seen == [step]
    assert json.loads((folder / "environment.json").read_text())["resumed"]
