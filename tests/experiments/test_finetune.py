"""finetune.py: from nothing, from a pretraining, from a published file; stopped and gone on; on all labels or a few."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from mien.data_pipelines.manifest import SCHEMA, Manifest
from mien.experiments import finetune
from mien.models import published
from mien.models.decoder import DecoderConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.platform import checkpoint
from mien.platform import config as settings
from mien.platform.config import ConfigError
from mien.platform.run import records

Weights = Callable[[Path], dict[str, Tensor]]


@pytest.fixture
def run(recipes: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that fine-tunes with further settings in a folder of the test, and gives its scores."""

    def call(*words: str, folder: str = "run") -> dict[str, Any]:
        finetune.main(["--config", str(recipes["finetune"]), "--output", str(tmp_path / folder), *words])
        found: dict[str, Any] = json.loads((tmp_path / folder / "scores.json").read_text())
        return found

    return call


def test_a_run_leaves_scores_predictions_and_records_and_keeps_off_the_test_clips(finetuned: Path, world: Path) -> None:
    found = json.loads((finetuned / "scores.json").read_text())
    assert 0 <= found["uar"] <= 1 and found["angular_error_deg"] > 0 and found["protocol"] == "honest"
    predictions = pq.read_table(finetuned / "predictions" / "val.parquet")
    folds = Manifest.read(world / "manifest.parquet").column("fold")
    assert found["num_clips"] == len(predictions) == 14
    assert all(folds[row] != 1 for row in predictions["row"].to_pylist())
    lines = records(finetuned / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["val/uar"] for line in lines if "val/uar" in line] == [found["uar"]]


def test_a_run_and_each_checkpoint_alone_say_what_they_were_trained_on(
    finetuned: Path, world: Path, tmp_path: Path
) -> None:
    kept = json.loads((finetuned / "inputs.json").read_text())
    found = json.loads((finetuned / "scores.json").read_text())
    trained = kept["trained_on"]
    assert trained["clips"] == found["num_train_clips"] and trained["parts"]["test"] == 14
    assert trained["manifest"] == Manifest.read(world / "manifest.parquet").fingerprint()
    assert trained["read"]["frames"] == 4 and trained["read"]["size"] == 32 and kept["pretrained_on"] is None
    for step in (finetuned / "checkpoints").iterdir():
        alone = shutil.copytree(step, tmp_path / step.name)
        assert checkpoint.about(alone)["inputs"] == kept


def test_a_run_of_before_fingerprints_goes_on_to_the_same_weights(
    run: Callable[..., Any], finetuned: Path, weights: Weights, tmp_path: Path
) -> None:
    shutil.copytree(finetuned, tmp_path / "run", ignore=shutil.ignore_patterns("step_00000006", "inputs.json"))
    for name in ("scores.json", "predictions/val.parquet"):
        (tmp_path / "run" / name).unlink()
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    about = json.loads((step / "config.json").read_text())
    del about["inputs"]
    (step / "config.json").write_text(json.dumps(about))
    written = json.loads((step / "complete").read_text())
    size, crc = (step / "config.json").stat().st_size, checkpoint.crc32(step / "config.json")
    (step / "complete").write_text(json.dumps(written | {"config.json": {"bytes": size, "crc32": crc}}))
    assert run() == json.loads((finetuned / "scores.json").read_text())
    assert all(torch.equal(value, weights(tmp_path / "run")[name]) for name, value in weights(finetuned).items())
    assert (tmp_path / "run" / "inputs.json").read_text() == (finetuned / "inputs.json").read_text()


def test_a_finished_run_gives_its_scores_back_and_trains_no_more(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run()
    monkeypatch.setattr(finetune, "run_training", None)  # would fail if it were called
    assert run() == found


def test_a_run_that_was_killed_before_its_scores_were_written_has_its_validation_once(
    run: Callable[..., Any], finetuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(finetuned, tmp_path / "run")
    (tmp_path / "run" / "scores.json").unlink()
    assert run() == json.loads((finetuned / "scores.json").read_text())
    assert records(tmp_path / "run" / "metrics.jsonl") == records(finetuned / "metrics.jsonl")


class KilledError(Exception):
    """Stands for a death that nothing in the program expects."""


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_weights(
    run: Callable[..., Any],
    finetuned: Path,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batches = finetune.training_batches

    def dying(*arguments: Any) -> Iterator[dict[str, Tensor]]:
        for count, batch in enumerate(batches(*arguments)):
            if count == 5:  # the checkpoint of step 4 is there, step 5 is lost
                raise KilledError
            yield batch

    with monkeypatch.context() as context, pytest.raises(KilledError):
        context.setattr(finetune, "training_batches", dying)
        run()
    found = run()
    assert "going on from" in capsys.readouterr().out
    assert all(torch.equal(value, weights(tmp_path / "run")[name]) for name, value in weights(finetuned).items())
    assert found == json.loads((finetuned / "scores.json").read_text())


@pytest.mark.ray
def test_a_pretrained_encoder_brings_its_sizes_and_its_weights(
    run: Callable[..., Any], pretrained: Path, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rate is too small to move anything, so the encoder's weights are still those of the pretraining.
    run(f"pretrained={pretrained}", "optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0")
    assert "35 parameters loaded" in capsys.readouterr().out
    before, after = weights(pretrained), weights(tmp_path / "run")
    shared = [name for name in before if name.startswith("backbone.")]
    known = json.loads((tmp_path / "run" / "inputs.json").read_text())["pretrained_on"]
    assert known == json.loads((pretrained / "inputs.json").read_text())["trained_on"]
    assert len(shared) == 35 and all(torch.equal(before[name], after[name]) for name in shared)
    run(f"pretrained={pretrained / 'checkpoints' / 'step_00000004'}", "pretrained_norm=true", folder="norm")
    with pytest.raises(ConfigError, match=r"(?s)encoder\.width: 32 there, 64 given.*leave task\.backbone out"):
        run(f"pretrained={pretrained}", "task.backbone.encoder.width=64", folder="other")


def test_a_published_file_starts_a_run(
    run: Callable[..., Any], tmp_path: Path, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = {
        "tubes": {"frames": 4, "size": 32, "patch": 8, "tubelet": 2},
        "encoder": {"name": "lgi_former", "width": 64, "depth": 1, "heads": 1, "region": [2, 2, 4]},
    }
    config = settings.rebuild(MaeConfig, {"backbone": backbone, "mask": {"ratio": 0.75}})
    task = MaskedAutoencoder(config.model_copy(update={"decoder": DecoderConfig(width=64, depth=1, heads=1)}))
    file = tmp_path / "pretrain.pth"
    torch.save({"model": published.save(task), "args": argparse.Namespace(model="pretrain", mask_ratio=0.75)}, file)
    sizes = [f"task.backbone.encoder.{name}={backbone['encoder'][name]}" for name in ("width", "heads")]
    run(f"pretrained={file}", *sizes, "optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0")
    assert "35 parameters loaded" in capsys.readouterr().out
    known = json.loads((tmp_path / "run" / "inputs.json").read_text())["pretrained_on"]
    assert known["name"] == "the published pretraining" and known["read"]["stride"] == 4
    found = weights(tmp_path / "run")
    assert torch.equal(found["backbone.embed.weight"], task.state_dict()["backbone.embed.weight"])


def test_fewer_labels_are_the_same_share_of_every_class(
    recipes: dict[str, Path], world: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    _, fold = finetune.opened(settings.load(finetune.FinetuneConfig, recipes["finetune"], {"data.label_ratio": 0.5}))
    labels = [fold.manifest.column("label")[row] for row in fold.split.train]
    assert sorted(labels) == sorted([*range(7)] * 3)
    found = run("data.label_ratio=0.5")
    assert found["num_clips"] == 14  # validation keeps its labels


def test_the_papers_protocol_is_labelled_wherever_its_number_stands(
    run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run("data.split.protocol=paper")
    assert found["protocol"] == "paper"
    assert "validation, protocol paper: 14 clips" in capsys.readouterr().out
    about = json.loads((tmp_path / "run" / "checkpoints" / "step_00000006" / "config.json").read_text())
    assert about["protocol"] == "paper"


@pytest.mark.parametrize(
    ("task", "there", "absent"), [("gaze", "angular_error_deg", "uar"), ("expression", "uar", "angular_error_deg")]
)
def test_one_task_alone_is_scored_by_its_own_numbers(
    run: Callable[..., Any], task: str, there: str, absent: str
) -> None:
    found = run(f"task.name={task}", "task.pool=patch", *tiny())
    assert there in found and absent not in found


def without(world: Path, folder: Path, *columns: str) -> str:
    """Return the setting of a manifest whose clips lack labels of some kind."""
    manifest = Manifest.read(world / "manifest.parquet")
    table = manifest.table
    for name in columns:
        field = SCHEMA.field(name)
        table = table.set_column(SCHEMA.get_field_index(name), field, pa.nulls(len(table), field.type))
    replace(manifest, table=table).write(folder / "manifest.parquet")
    return f"data.manifest={folder / 'manifest.parquet'}"


def test_what_is_to_be_learned_must_be_there(run: Callable[..., Any], world: Path, tmp_path: Path) -> None:
    no_gaze = without(world, tmp_path, "pitch", "yaw")
    with pytest.raises(ConfigError, match=r"each clip's gaze, but none of the 42 training clips.*task\.gaze_weight=0"):
        run(no_gaze)
    with pytest.raises(ConfigError, match="each clip's gaze"):
        run(no_gaze, "task.name=gaze", "task.pool=patch", *tiny())
    with pytest.raises(ConfigError, match=r"gaze cannot follow data\.augment\.kind=pretrain"):
        run("data.augment.kind=pretrain")
    assert not (tmp_path / "run").exists()
    assert "angular_error_deg" not in run(no_gaze, "task.gaze_weight=0")


def test_classes_to_be_learned_must_be_there(run: Callable[..., Any], world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"each clip's label, but none of the .* training clips.*task\.alpha=0"):
        run(without(world, tmp_path, "label"), "data.split.validation_ratio=0.2")


def test_without_gaze_to_learn_clips_are_augmented_as_for_classes(recipes: dict[str, Path]) -> None:
    given = {"task.gaze_weight": 0, "data.augment.kind": "finetune"}
    _, fold = finetune.opened(settings.load(finetune.FinetuneConfig, recipes["finetune"], given))
    assert fold.read.augment.randaugment.geometric and fold.read.augment.crop_area_min < 0.1
    _, fold = finetune.opened(
        settings.load(finetune.FinetuneConfig, recipes["finetune"], given | {"task.gaze_weight": 1})
    )
    assert not fold.read.augment.randaugment.geometric


def tiny() -> list[str]:
    """Return the settings of the recipe's backbone, which another task does not inherit."""
    tubes, encoder = "task.backbone.tubes", "task.backbone.encoder"
    return [
        f"{tubes}.frames=4", f"{tubes}.size=32", f"{tubes}.patch=8",
        f"{encoder}.width=32", f"{encoder}.depth=1", f"{encoder}.heads=2", f"{encoder}.region=[2,2,4]",
    ]  # fmt: skip


def test_a_dry_run_counts_and_writes_nothing(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.main(["--config", str(recipes["finetune"]), "--output", str(tmp_path / "run"), "--dry-run"])
    shown = capsys.readouterr().out
    for words in ("num_classes: 7", "32 a clip", "parameters", "GFLOP a clip", "training clips  42", "6 (1.1 epochs)"):
        assert words in shown
    assert not (tmp_path / "run").exists()


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        finetune.main(["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    for setting in settings.settings(finetune.FinetuneConfig):
        assert f"  {setting.key} (" in shown
        assert setting.meaning, f"{setting.key} has no meaning"


def test_the_moving_average_is_judged_beside_the_weights_and_counts_where_asked(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    words = ["loop.ema_decay=0.9", "optim.lr=2e-2"]
    own, ema = run(*words, folder="own"), run(*words, "evaluate_ema=true", folder="ema")
    assert (own["weights"], ema["weights"]) == ("own", "ema")
    assert own["by_weights"] == ema["by_weights"] and set(own["by_weights"]) == {"own", "ema"}
    assert own["by_weights"]["own"] != own["by_weights"]["ema"]
    for found, which in ((own, "own"), (ema, "ema")):
        assert {name: found[name] for name in found["by_weights"][which]} == found["by_weights"][which]
    (line,) = [line for line in records(tmp_path / "ema" / "metrics.jsonl") if "val/uar" in line]
    assert line["val/uar"] == ema["uar"]
    assert any("val_own/uar" in line for line in records(tmp_path / "ema" / "metrics.jsonl"))


def test_a_moving_average_that_is_not_made_cannot_be_judged(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set loop\.ema_decay"):
        run("evaluate_ema=true")
    assert not (tmp_path / "run").exists()
