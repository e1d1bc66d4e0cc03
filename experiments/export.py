"""Export a trained model as a program that runs without this platform: torch.export's, and ONNX's where asked for.

    python experiments/export.py output/dfew_fold1 --output output/exported
    python experiments/export.py output/dfew_fold1 --output output/exported onnx=true    # needs requirements-export.txt

The first word is a run folder, one of its checkpoints or a published file. The program takes clips as decoders give
them, uint8 (b, t, h, w, 3) for any b, and answers as `evaluate.py` asks its model: probabilities of the classes, gaze
in radians, those of frames; of a pretraining run, features. Standardising is inside. The program is compared with the
model on clips, and DIR holds model.pt2, model.onnx and model.json: names, shapes and units, classes, how clips are
read, what the run was trained on, and the largest differences found. In Python, with PyTorch alone:

    program = torch.export.load("output/exported/model.pt2").module()
    answers = program(clips)  # {"probabilities": (b, K), "gaze": (b, 2)}

On a GPU, with torch.export.passes: `move_to_device_pass(torch.export.load(FILE), "cuda").module()`. Where ONNX does not
hold, it says why and ends with 1; no file is left that answers otherwise than the model.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, Field
from torch import Tensor, nn

import mien
from mien.data_pipelines import reading
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.sampling import SamplingConfig
from mien.experiments.doctor import Weights, filled, open_weights
from mien.models.backbone import Task
from mien.models.mae import MaskedAutoencoder
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.progress import table
from mien.platform.storage import storing, sync

ONNX_OPSET = 20
Answers = dict[str, Tensor]
UNITS = {
    "probabilities": "of the classes, in their order; they sum to 1",
    "frame_probabilities": "of the classes, for each frame",
    "gaze": "pitch and yaw in radians; up and, in the image, left are positive; (0, 0) looks into the camera",
    "frame_gaze": "pitch and yaw in radians, for each frame",
    "features": "the mean of the encoder's patches",
}


class ExportConfig(BaseModel, frozen=True, extra="forbid"):
    """What is exported, and on what it is compared."""

    file: str = Field("output/finetune", description="file or folder of weights; may be given as the first word")
    onnx: bool = Field(False, description="write model.onnx too; needs requirements-export.txt")
    ema: bool | None = Field(
        None, description="take the moving average of a run's weights; null: what the run itself is judged by"
    )
    manifest: str | None = Field(
        None, description="manifest on whose clips the outputs are compared; null: the run's own, or noise without one"
    )
    root: str | None = Field(None, description="folder of that manifest's clips, where it has moved since prepare.py")
    clips: int = Field(8, description="clips that are compared; labels are not looked at", gt=0)
    tolerance: float = Field(
        1e-4, description="largest difference of an output that is still equal; probabilities, radians", gt=0
    )


class Answering(nn.Module):
    """A task as a function of clips alone."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task.eval().requires_grad_(False)  # else a program would hold what gradients need

    def forward(self, clip: Tensor) -> Answers:
        """Return the answers to clips uint8 (b, t, h, w, c); of an autoencoder, the features (b, d)."""
        if isinstance(self.task, MaskedAutoencoder):
            return {"features": self.task.features({"clip": clip})}
        plain: Any = self.task
        answers: Answers = plain.predict({"clip": clip})
        return answers


@torch.no_grad()
def exported(task: Task) -> torch.export.ExportedProgram:
    """Return a task's answers as a program for any number of clips."""
    tubes = task.backbone.config.tubes
    clip = torch.zeros(2, tubes.frames, tubes.size, tubes.size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(Answering(task), (clip,), dynamic_shapes={"clip": {0: batch}})


@torch.no_grad()
def write_onnx(program: torch.export.ExportedProgram, names: Sequence[str], file: Path) -> None:
    """Write a program as ONNX. Raises ConfigError where that is not installed, RuntimeError where it does not hold."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"onnx=true needs pip install -r requirements-export.txt ({error}); or leave it out"
        ) from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch's exporter itself uses
        made = torch.onnx.export(
            program, input_names=["clip"], output_names=list(names), opset_version=ONNX_OPSET, verbose=False
        )
        assert made is not None
        made.save(file)


def onnx_program(file: Path, names: Sequence[str], threads: int = 0) -> Callable[[Tensor], Answers]:
    """Return an ONNX file as a function of clips, run by so many threads; 0: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def answer(clip: Tensor) -> Answers:
        values = session.run(list(names), {"clip": clip.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return answer


def differences(program: Callable[[Tensor], Answers], task: Task, clips: Tensor) -> dict[str, float]:
    """Return by output the largest difference of a program from a task, on all clips at once and on one."""
    model = Answering(task)
    found: dict[str, float] = {}
    with torch.no_grad():
        for batch in (clips, clips[:1]):
            right, told = model(batch), program(batch)
            for name, value in right.items():
                found[name] = max(found.get(name, 0.0), (told[name] - value).abs().max().item())
    return found


def run_config(file: str) -> dict[str, Any]:
    """Return the config of a run folder as plain data, or nothing where `file` is none."""
    path = Path(file) / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def clips_of(config: ExportConfig, weights: Weights) -> tuple[Tensor, str]:
    """Return clips uint8 (b, t, h, w, c) to compare on, evenly chosen from a manifest, and what they are."""
    tubes = weights.config.backbone.tubes
    data = run_config(config.file).get("data", {})
    path, root = (config.manifest, config.root) if config.manifest else (data.get("manifest"), data.get("root"))
    if path is None or (config.manifest is None and not Path(path).is_file()):
        shape = (config.clips, tubes.frames, tubes.size, tubes.size, 3)
        return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), "noise"
    manifest = Manifest.read(path, root)
    sampling, plain = SamplingConfig(segments=1), AugmentConfig(kind="none")
    read = reading.for_model(sampling, plain, frames=tubes.frames, size=tubes.size, root=manifest.root)
    rows = np.unique(np.linspace(0, len(manifest) - 1, config.clips).astype(int))
    batch = next(iter(reading.local_views(manifest, rows, len(rows), read)))
    return torch.from_numpy(batch["clip"]), str(path)


def description(config: ExportConfig, weights: Weights, answers: Answers) -> dict[str, Any]:
    """Return what whoever runs the program has to know."""
    tubes, about = weights.config.backbone.tubes, weights.about
    trained_on = about.get("inputs", {}).get("trained_on") or {}
    shape = ["batch", tubes.frames, tubes.size, tubes.size, 3]
    return {
        "made_from": config.file,
        "task": weights.config.name,
        "encoder": weights.config.backbone.encoder.name,
        "input": {
            "name": "clip",
            "type": "uint8",
            "shape": shape,
            "meaning": "frames of one face, red green blue, 0 to 255, as cropped for training; not standardised",
        },
        "outputs": [
            {"name": name, "type": "float32", "shape": ["batch", *value.shape[1:]], "meaning": UNITS[name]}
            for name, value in answers.items()
        ],
        "classes": about.get("classes"),
        "preprocessing": {"inside": "standardised by ImageNet's mean and deviation", "read": trained_on.get("read")},
        "fingerprint": about.get("fingerprint"),
        "trained_on": trained_on,
        "versions": {"mien": mien.__version__, "torch": torch.__version__},  # type: ignore[attr-defined]
    }


def export(config: ExportConfig, output: Path) -> dict[str, Any]:
    """Write the program's folder, whole or not at all, and return what model.json holds.

    Raises ValueError where the folder exists or where the exported program answers otherwise than the model.
    """
    if output.exists():
        raise ConfigError(f"a program is written to a new folder, but {output} exists; give another --output")
    judged_by_average = run_config(config.file).get("evaluate_ema", False)
    weights = open_weights(config.file, ema=judged_by_average if config.ema is None else config.ema)
    task = filled(weights)
    clips, kind = clips_of(config, weights)
    program = exported(task)
    with torch.no_grad():
        answers = Answering(task)(clips[:1])
    told = description(config, weights, answers)
    compared: dict[str, Any] = {"clips": len(clips), "of": kind, "tolerance": config.tolerance}
    told["compared"] = compared
    temporary = output.with_name(f".{output.name}.new")
    try:
        with storing(output.parent, 2 * sum(value.nbytes for value in weights.state.values())):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            file = temporary / "model.pt2"
            torch.export.save(program, file)
            compared["model.pt2"] = differences(torch.export.load(file).module(), task, clips)
            check(compared["model.pt2"], config.tolerance)
            if config.onnx:
                told["onnx"] = try_onnx(program, task, clips, temporary / "model.onnx", config.tolerance)
            (temporary / "model.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            for path in temporary.iterdir():
                sync(path)
            temporary.rename(output)
            sync(output.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return told


def try_onnx(
    program: torch.export.ExportedProgram, task: Task, clips: Tensor, file: Path, tolerance: float
) -> dict[str, Any]:
    """Write and compare an ONNX file; where it does not hold, say why and leave none."""
    with torch.no_grad():
        names = list(Answering(task)(clips[:1]))
    try:
        write_onnx(program, names, file)
        found = differences(onnx_program(file, names), task, clips)
        check(found, tolerance)
    except ConfigError:
        raise
    except (RuntimeError, ValueError) as error:  # how the exporter and the runtime say what they cannot
        file.unlink(missing_ok=True)
        return {"holds": False, "why": str(error).strip().splitlines()[0]}
    return {"holds": True, "opset": ONNX_OPSET, "differences": found}


def check(found: dict[str, float], tolerance: float) -> None:
    """Raise ValueError where an output differs by more than is allowed."""
    if wrong := {name: value for name, value in found.items() if not value <= tolerance}:
        raise ValueError(
            f"an exported program must answer as its model within {tolerance:g}, but differs by {wrong}; "
            "compare on real clips (manifest=) or raise tolerance"
        )


def main(argv: Sequence[str]) -> None:
    """Read the command line, export and say what was found; exit code 1 where ONNX does not hold."""
    call = parse(ExportConfig, argv, __doc__, first="file")
    if call.dry_run:
        print(dump(call.config))
        return
    output = call.output or Path("output/exported")
    told = export(call.config, output)
    table([{"output": of["name"], "shape": str(of["shape"]), "meaning": of["meaning"]} for of in told["outputs"]])
    compared = told["compared"]
    print(f"{output}/model.pt2: equal on {compared['clips']} clips of {compared['of']}: {compared['model.pt2']}")
    if onnx := told.get("onnx"):
        if not onnx["holds"]:
            print(f"no model.onnx: {onnx['why']}")
            raise SystemExit(1)
        print(f"{output}/model.onnx: equal on the same clips: {onnx['differences']}")


if __name__ == "__main__":
    run_program(main)
