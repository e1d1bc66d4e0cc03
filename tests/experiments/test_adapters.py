"""Fine-tuning with adapters, and at another depth and size: stopped and gone on, evaluated, and begun from again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mien.experiments import doctor, evaluate, finetune
from mien.models import published
from mien.models.backbone import BackboneConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.lora import merged
from mien.platform import checkpoint
from mien.platform.config import ConfigError

Weights = Callable[[Path], dict[str, Tensor]]
BLOCK = "backbone.encoder.blocks.0."


@pytest.fixture
def run(recipes: dict[str, Path], finetuned: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that fine-tunes anew from a finished run, whose backbone it takes, and gives the folder."""

    def call(*words: str, folder: str = "run", start: Path = finetuned) -> Path:
        tree = tmp_path / "recipe.yaml"
        recipe = yaml.safe_load(recipes["finetune"].read_text(encoding="utf-8"))
        del recipe["task"]["backbone"]
        tree.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        finetune.main(["--config", str(tree), "--output", str(tmp_path / folder), f"pretrained={start}", *words])
        return tmp_path / folder

    return call


LORA = ("task.lora.rank=2", "task.lora.dropout=0.1", "optim.layer_decay=1.0", "optim.lr=0.05")


class KilledError(Exception):
    """Stands for a death that nothing in the program expects."""


def test_adapters_alone_are_trained_and_a_killed_run_ends_with_the_same_weights(
    run: Callable[..., Path],
    finetuned: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = run(*LORA)
    assert "adapters, which add nothing yet" in capsys.readouterr().out
    before, after = weights(finetuned), weights(whole)
    frozen = [name for name in before if name.startswith("backbone.")]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert after[f"{BLOCK}first_attn.q.lora_B"].abs().max() > 0
    assert not torch.equal(before["class_head.weight"], after["class_head.weight"])

    batches = finetune.training_batches

    def dying(*arguments: Any) -> Iterator[dict[str, Tensor]]:
        for count, batch in enumerate(batches(*arguments)):
            if count == 5:
                raise KilledError
            yield batch

    with monkeypatch.context() as context, pytest.raises(KilledError):
        context.setattr(finetune, "training_batches", dying)
        run(*LORA, folder="killed")
    again = weights(run(*LORA, folder="killed"))
    assert again.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in again.items())


def test_a_run_with_adapters_is_evaluated_and_begun_from(
    run: Callable[..., Path], weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(*LORA)
    evaluate.main([str(first)])
    scores = json.loads((first / "test" / "scores.json").read_text(encoding="utf-8"))
    assert scores["folds"].keys() == {"1"} and 0 <= scores["folds"]["1"]["uar"] <= 1
    # What begins from it has its adapters in the weights.
    task = doctor.load(first)
    plain = merged(task.state_dict(), task.lora)
    config = finetune.FinetuneConfig.model_validate({"pretrained": str(first), "task": {"name": "gaze"}})
    began = finetune.make_task(finetune.completed(config)).state_dict()
    name = f"{BLOCK}first_attn.q.weight"
    assert torch.equal(began[name], plain[name]) and not torch.equal(began[name], weights(first)[name])
    doctor.main([str(first), "to=published", "merge=true", "--output", str(tmp_path / "plain.pth")])
    clips = {"clip": torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)}
    outputs = [doctor.load(place).predict(clips)["probabilities"] for place in (first, tmp_path / "plain.pth")]
    assert torch.equal(*outputs)


def test_a_dry_run_says_how_many_parameters_are_trained(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(*LORA, "--dry-run")
    printed = capsys.readouterr().out
    assert "of which" in printed and "rank: 2" in printed
    run("task.lora.rank=0", "--dry-run")
    # the pooled norm, 7 classes and 2 angles of 32 channels
    assert f"of which {2 * 32 + 9 * 33:,} are trained" in capsys.readouterr().out


def test_a_pretrained_backbone_goes_to_another_depth_size_and_region(
    run: Callable[..., Path], weights: Weights, finetuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("adapt.depth=2", "adapt.size=48", "adapt.region=[1,3,6]")
    printed = capsys.readouterr().out
    assert "resized (stretched from 2x4x4 to 2x6x6): positions of the fixed table" in printed
    assert "resized (stretched from 1x2x1 to 2x2x1): backbone.encoder.region_tokens" in printed
    assert "newly drawn (of blocks after the file's 1): backbone.encoder.blocks.1." in printed
    about = checkpoint.about(folder)["task"]["backbone"]
    assert about["table_grid"] == [2, 4, 4] and about["encoder"]["depth"] == 2 and about["tubes"]["size"] == 48
    evaluate.main([str(folder)])
    assert (folder / "test" / "scores.json").is_file()
    back = run("adapt.depth=1", "adapt.size=32", "adapt.region=[2,2,4]", folder="back", start=folder)
    assert "left in the file (of blocks after the model's 1)" in capsys.readouterr().out
    assert checkpoint.about(back)["task"]["backbone"]["table_grid"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adapt.size=40",), r"region must divide the grid"),
        (("adapt.depth=2", "pretrained=null"), "adapt changes a pretrained backbone, but pretrained is null"),
        (("adapt.depth=2", "task.backbone.tubes.frames=8"), "leave task.backbone out"),
        (("task.lora.rank=2", "pretrained=null"), "freezes the backbone, but without pretrained= it is noise"),
        (("task.lora.targets=[qq]",), r"lora\.targets: 'qq' fits none of these"),
        (("task.lora.rnk=2",), "did you mean task.lora.rank"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    words: tuple[str, ...], message: str, run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        run(*words, folder="refused")
    assert not (tmp_path / "refused").exists()


def test_a_published_encoder_of_images_begins_a_model_of_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = {"name": "mamba", "width": 32, "depth": 1}
    still = BackboneConfig.model_validate({"tubes": {"frames": 1, "size": 32, "tubelet": 1}, "encoder": encoder})
    state = published.save(Expression(ExpressionConfig(backbone=still)))
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    del state["temporal_pos_embedding"]
    torch.save({"model": state}, tmp_path / "images.pth")
    backbone = {"tubes": {"frames": 8, "size": 64, "tubelet": 2}, "encoder": encoder}
    settings = {"pretrained": str(tmp_path / "images.pth"), "task": {"name": "gaze", "backbone": backbone}}
    settings["task"]["lora"] = {"rank": 1, "targets": ["out_proj"]}  # type: ignore[index]
    task = finetune.make_task(finetune.completed(finetune.FinetuneConfig.model_validate(settings)))
    assert torch.equal(task.backbone.embed.weight[:, :, 1], state["patch_embed.proj.weight"])
    printed = capsys.readouterr().out
    assert "inflated from one frame to 2" in printed and "images have no times" in printed
    learned = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert {name for name in learned if "backbone" in name and "lora" not in name} == {
        "backbone.encoder.temporal_pos_embedding"  # which no file has, so that frozen it would stay 0
    }
