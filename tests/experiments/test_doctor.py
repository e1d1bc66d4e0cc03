"""doctor.py: what a file is, whether it loads and why not, and the way through every format and back."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mien.experiments import doctor, finetune
from mien.models import published
from mien.models.expression import Expression, ExpressionConfig
from mien.models.gaze import Gaze, GazeConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.platform import checkpoint
from mien.platform.config import ConfigError, plain

BACKBONE = {
    "tubes": {"frames": 4, "size": 32, "patch": 8, "tubelet": 2},
    "encoder": {"name": "lgi_former", "width": 64, "depth": 2, "heads": 1, "region": (2, 2, 4)},
}
ARGS = argparse.Namespace(
    num_frames=4, input_size=32, attn_type="local_global", lg_region_size=[2, 2, 4], lg_classify_token_type="all"
)


def expression(**settings: Any) -> Expression:
    torch.manual_seed(0)
    task = Expression(ExpressionConfig.model_validate({"backbone": BACKBONE, "pool": "all", **settings}))
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return task.eval()


def autoencoder() -> MaskedAutoencoder:
    settings = {"backbone": BACKBONE, "mask": {"kind": "window", "ratio": 0.75}, "decoder": {"width": 64, "heads": 1}}
    return MaskedAutoencoder(MaeConfig.model_validate(settings | {"published_positions": True}))


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a published fine-tuned file with its settings beside."""
    return written(tmp_path / "checkpoint-best.pth", {"model": published.save(expression()), "epoch": 49, "args": ARGS})


@pytest.fixture
def clips() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"clip": torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)}


def ended(*words: str | Path) -> int:
    """Call the program and return its exit code."""
    try:
        doctor.main([str(word) for word in words])
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_a_published_file_is_told_and_its_config_rebuilds_it(
    file: Path, clips: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(file) == 0
    printed = capsys.readouterr().out
    for told in (
        "expression (7 classes)",
        "published names",
        "lgi_former, 2 blocks of width 64, region 2x2x4",
        "4 frames of 32 x 32",
        "float32",
        "49",
        "pool: all",
        "2 left in the file (a head, asked to be new): head.weight, head.bias",
    ):
        assert told in printed
    assert f"loads: all of its {len(published.save(expression()))} tensors" in printed
    task = doctor.load(file)
    assert torch.equal(task.predict(clips)["probabilities"], expression().predict(clips)["probabilities"])


def test_what_a_file_does_not_tell_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = written(tmp_path / "bare.pth", published.save(expression()))
    assert ended(bare) == 1
    assert "2 regions fill the grid" in capsys.readouterr().out
    assert ended(bare, "frames=4", "size=32", "region=[2,2,4]") == 0
    assert "region 2x2x4" in capsys.readouterr().out


def test_every_format_leads_to_every_other_and_back(
    file: Path, tmp_path: Path, clips: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = tmp_path / "ours", tmp_path / "theirs.pth", tmp_path / "again"
    assert ended(file, "to=safetensors", "--output", first) == 0
    assert f"wrote {first}: " in capsys.readouterr().out
    assert ended(first, "to=published", "--output", second) == 0
    assert ended(second, "to=safetensors", "--output", third) == 0
    before, after = published.read_state(file), published.read_state(second)
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    one, two = checkpoint.weights(first), checkpoint.weights(third)
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    assert checkpoint.about(first) == checkpoint.about(third)
    assert checkpoint.about(first)["inputs"]["trained_on"]["name"] == "the published fine-tuning"
    expected = expression().predict(clips)["probabilities"]
    for place in (first, second, third):
        assert torch.equal(doctor.load(place).predict(clips)["probabilities"], expected)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_published_names_in_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({f"module.{name}": value.clone() for name, value in published.save(expression()).items()}, path)
    assert ended(path, "frames=4", "size=32", "region=[2,2,4]") == 0
    path.write_bytes(b"no safetensors at all")
    assert ended(path) == 1


def test_a_file_out_of_a_checkpoint_is_not_mistaken(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(checkpoint.find(finetuned) / "weights.safetensors") == 1
    assert "one file of a checkpoint of ours; give its folder" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["safetensors", "published"])
def test_fine_tuning_begins_from_what_was_written(to: str, file: Path, tmp_path: Path) -> None:
    output = tmp_path / ("ours" if to == "safetensors" else "theirs.pth")
    assert ended(file, f"to={to}", "--output", output) == 0
    settings = {"pretrained": str(output), "task": {"name": "gaze"}, "adapt": {"depth": 3, "frames": 8}}
    task = finetune.make_task(finetune.completed(finetune.FinetuneConfig.model_validate(settings)))
    expected = expression().backbone.encoder.blocks[1].state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in task.backbone.encoder.blocks[1].state_dict().items()
    )
    assert task.backbone.config.table_grid == (2, 4, 4) and task.backbone.config.tubes.grid == (4, 4, 4)


def test_a_state_space_encoder_goes_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = {"name": "mamba", "width": 32, "depth": 2}
    task = Expression(ExpressionConfig.model_validate({"backbone": BACKBONE | {"encoder": encoder}, "pool": "region"}))
    path = written(tmp_path / "videomamba.pth", published.save(task))
    assert ended(path, "frames=4", "size=32", "to=safetensors", "--output", tmp_path / "ours") == 0
    assert "mamba, 2 blocks of width 32" in capsys.readouterr().out
    assert ended(tmp_path / "ours", "to=published", "--output", tmp_path / "theirs.pth") == 0
    before, after = (published.read_state(place) for place in (path, tmp_path / "theirs.pth"))
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    settings = {"pretrained": str(tmp_path / "ours"), "adapt": {"depth": 1, "size": 64}}
    smaller = finetune.make_task(finetune.completed(finetune.FinetuneConfig.model_validate(settings)))
    assert "pos_embed" in capsys.readouterr().out and len(smaller.backbone.encoder.blocks) == 1


def test_adapters_are_kept_or_merged(
    tmp_path: Path, clips: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    task = expression(lora={"rank": 2, "alpha": 3.0})
    checkpoint.export(tmp_path / "run", task.state_dict(), {"task": plain(ExpressionConfig(
        backbone=task.backbone.config, pool="all", lora=task.lora
    ))})  # fmt: skip
    assert ended(tmp_path / "run", "to=published", "--output", tmp_path / "lora.pth") == 0
    assert "adapters of rank 2" in capsys.readouterr().out
    assert ended(tmp_path / "run", "to=published", "merge=true", "--output", tmp_path / "plain.pth") == 0
    names = [set(published.read_state(tmp_path / name)) for name in ("lora.pth", "plain.pth")]
    assert {name for name in names[0] if "lora" not in name} == names[1]
    expected = task.predict(clips)["probabilities"]
    assert torch.equal(doctor.load(tmp_path / "plain.pth").predict(clips)["probabilities"], expected)
    torch.testing.assert_close(doctor.load(tmp_path / "lora.pth").predict(clips)["probabilities"], expected)


def lacking(state: dict[str, Tensor]) -> None:
    del state["blocks.1.norm2.bias"]
    state["blocks.0.norm2.bias"] = torch.zeros(7)
    state["blocks.0.strange"] = torch.zeros(1)


def spoilt(state: dict[str, Tensor]) -> None:
    state["blocks.0.norm2.bias"][3] = torch.nan


def foreign(state: dict[str, Tensor]) -> None:
    state.clear()
    state["layers.0.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lacking,
            [
                "not in the file: blocks.1.norm2.bias (ours: backbone.encoder.blocks.1.norm2.bias)",
                "unknown to the model: blocks.0.strange",
                "blocks.0.norm2.bias (ours: backbone.encoder.blocks.0.norm2.bias): (7,) in the file, (64,) in the",
            ],
        ),
        (spoilt, ["1 tensors hold NaN or infinity: blocks.0.norm2.bias"]),
        (foreign, ["no weights of a known video model", "layers.0.weight"]),
    ],
)
def test_what_does_not_load_is_told_with_all_its_reasons(
    change: Callable[[dict[str, Tensor]], None],
    messages: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = published.save(expression())
    change(state)
    assert ended(written(tmp_path / "bad.pth", {"model": state, "args": ARGS})) == 1
    printed = capsys.readouterr().out
    assert all(message in printed for message in messages)


def test_damaged_files_and_folders_are_told(
    file: Path, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(file.read_bytes()[:5000])
    assert ended(file) == 1 and "damaged" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert ended(tmp_path / "empty") == 1 and "holds none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.pth"], "does not exist"),
        (["{file}", "to=published"], "belong together"),
        (["{file}", "to=published", "--output", "{file}"], "writes a new file that ends in .pth"),
        (["{file}", "to=published", "--output", "weights.bin"], "ends in .pth"),
        (["{file}", "ema=true"], "only a run's folder holds a moving average"),
    ],
)
def test_a_wrong_call_says_what_is_right(words: list[str], message: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        doctor.main([word.replace("{file}", str(file)) for word in words])


def test_a_finished_run_is_told_converted_and_loaded(
    finetuned: Path, tmp_path: Path, clips: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(finetuned) == 0
    printed = capsys.readouterr().out
    assert "expression and gaze (7 classes)" in printed and "a checkpoint of ours" in printed
    with pytest.raises(ConfigError, match=r"frames: .* tells these itself"):
        doctor.main([str(finetuned), "frames=4"])
    assert ended(finetuned, "to=published", "--output", tmp_path / "run.pth") == 0
    assert ended(tmp_path / "run.pth", "to=safetensors", "--output", tmp_path / "back") == 0
    assert checkpoint.about(tmp_path / "back")["classes"] == checkpoint.about(finetuned)["classes"]
    outputs = [doctor.load(place).predict(clips) for place in (finetuned, tmp_path / "run.pth", tmp_path / "back")]
    for output in outputs[1:]:
        assert all(torch.equal(output[name], outputs[0][name]) for name in ("probabilities", "gaze"))


def test_what_the_published_code_would_compute_otherwise_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"backbone": BACKBONE, "pool": "patch", "per_frame": True, "gaze_head": "binned"}
    task = Gaze(GazeConfig.model_validate(settings))
    checkpoint.export(tmp_path / "gaze", task.state_dict(), {"task": plain(GazeConfig.model_validate(settings))})
    assert ended(tmp_path / "gaze", "to=published", "--output", tmp_path / "gaze.pth") == 0
    printed = capsys.readouterr().out
    assert "outputs for frames mix the regions" in printed and "no gaze head of such bins" in printed


def test_a_pretraining_says_what_fine_tuning_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "checkpoint-49.pth", {"model": published.save(autoencoder()), "args": ARGS})
    assert ended(path) == 0
    printed = capsys.readouterr().out
    assert "pretraining (masked autoencoder)" in printed
    assert "of the pretraining decoder" in printed and "replaced by a new one as published" in printed


def test_an_export_never_overwrites(file: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"written to a new folder, but .* exists"):
        ended(file, "to=safetensors", "--output", tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_two_lines_of_python_load_a_finished_run(finetuned: Path, tmp_path: Path) -> None:
    program = f"""
from mien.experiments.doctor import load
task = load({str(finetuned)!r})
import torch
print(tuple(task.predict({{"clip": torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)}})["probabilities"].shape))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(2, 7)"
