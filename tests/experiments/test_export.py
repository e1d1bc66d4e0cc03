"""export.py: the program answers as the model for any number of clips, alone, and says what goes in and comes out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.export.passes import move_to_device_pass

from mien.experiments import doctor, export
from mien.models.backbone import Task
from mien.models.tasks import TaskConfig, build
from mien.platform.config import ConfigError

TUBES = {"frames": 4, "size": 16, "patch": 8, "tubelet": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "lgi_former": {"name": "lgi_former", "width": 32, "depth": 1, "heads": 2, "region": (1, 2, 2)},
    "vit": {"name": "vit", "width": 32, "depth": 1, "heads": 2},
    "mamba": {"name": "mamba", "width": 32, "depth": 1},
}
ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
clips = torch.load(sys.argv[2], weights_only=True)
torch.save(dict(program(clips)), sys.argv[3])
assert not [name for name in sys.modules if name.split(".")[0] == "mien"]
"""


def made(encoder: str, **changes: Any) -> Task:
    settings: dict[str, Any] = {"name": "combined", "backbone": {"tubes": TUBES, "encoder": ENCODERS[encoder]}}
    torch.manual_seed(0)
    task = build(TypeAdapter(TaskConfig).validate_python(settings | changes))
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return task.eval()


def clips(count: int, frames: int = 4, size: int = 16) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, frames, size, size, 3), dtype=torch.uint8, generator=drawn)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "changes", [{}, {"pool": "patch", "per_frame": True, "gaze_head": "binned"}], ids=["", "frames"]
)
def test_a_program_takes_any_number_of_clips(encoder: str, changes: dict[str, Any]) -> None:
    task = made(encoder, **changes)
    program = export.exported(task).module()
    for count in (1, 2, 7):
        right, told = task.predict({"clip": clips(count)}), program(clips(count))
        assert right.keys() == told.keys()
        for name, value in right.items():
            torch.testing.assert_close(told[name], value, rtol=1e-5, atol=1e-6)


def test_adapters_are_exported() -> None:
    adapted = made("lgi_former", lora={"rank": 2})
    assert max(export.differences(export.exported(adapted).module(), adapted, clips(3)).values()) < 1e-6


def test_of_an_autoencoder_the_features_are_exported() -> None:
    mae = made("lgi_former", name="mae", mask={"ratio": 0.5}, decoder={"width": 16, "depth": 1, "heads": 1})
    program = export.exported(mae).module()
    torch.testing.assert_close(program(clips(3))["features"], mae.features({"clip": clips(3)}))


def test_no_tensor_of_a_program_stays_behind_where_it_is_moved_to_another_device() -> None:
    moved = move_to_device_pass(export.exported(made("mamba")), "meta")
    assert moved.module()(clips(3).to("meta"))["gaze"].is_meta


def test_a_finished_run_becomes_a_folder_that_pytorch_alone_runs(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "exported"
    export.main([str(finetuned), "--output", str(output), "clips=3"])
    assert "equal on 3 clips of" in capsys.readouterr().out
    told = json.loads((output / "model.json").read_text())
    assert told["input"]["shape"] == ["batch", 4, 32, 32, 3] and len(told["classes"]) == 7
    assert [(of["name"], of["shape"]) for of in told["outputs"]] == [
        ("probabilities", ["batch", 7]),
        ("gaze", ["batch", 2]),
    ]
    assert told["compared"]["of"].endswith("manifest.parquet") and told["trained_on"]["clips"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]

    torch.save(clips(5, 4, 32), tmp_path / "clips.pt")
    files = [str(output / "model.pt2"), str(tmp_path / "clips.pt"), str(tmp_path / "answers.pt")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True, cwd=tmp_path, timeout=100)
    right = doctor.load(finetuned).predict({"clip": clips(5, 4, 32)})  # type: ignore[operator]
    for name, value in torch.load(tmp_path / "answers.pt", weights_only=True).items():
        torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-6)


def test_an_existing_folder_and_other_answers_are_refused(finetuned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists; give another --output"):
        export.main([str(finetuned), "--output", str(tmp_path)])
    with pytest.raises(ValueError, match=r"answer as its model within 0\.0001, but differs by \{'gaze': 0\.1\}"):
        export.check({"gaze": 0.1, "probabilities": 0.0}, 1e-4)
    with pytest.raises(ValueError, match="differs by"):
        export.check({"gaze": float("nan")}, 1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_onnx_holds(encoder: str, tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason="requirements-export.txt is not installed")
    task = made(encoder)
    found = export.try_onnx(export.exported(task), task, clips(3), tmp_path / "model.onnx", 1e-4)
    assert found.get("why") is None and (tmp_path / "model.onnx").is_file()
    assert max(found["differences"].values()) < 1e-5


def test_an_onnx_file_that_does_not_hold_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(program: object, names: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("no operator for aten.scan\nmore")

    monkeypatch.setattr(export, "write_onnx", broken)
    task = made("vit")
    found = export.try_onnx(export.exported(task), task, clips(1), tmp_path / "model.onnx", 1e-4)
    assert found == {"holds": False, "why": "no operator for aten.scan"}
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_onnx_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    task = made("vit")
    with pytest.raises(ConfigError, match=r"requirements-export\.txt"):
        export.try_onnx(export.exported(task), task, clips(1), tmp_path / "model.onnx", 1e-4)
