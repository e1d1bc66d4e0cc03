"""Say what a file of weights is, which config rebuilds its model and what would not load, and write other formats.

    python experiments/doctor.py checkpoint-49.pth
    python experiments/doctor.py output/dfew_fold1 to=published --output dfew_fold1.pth
    python experiments/doctor.py checkpoint-49.pth to=safetensors --output output/published_pretraining

FILE is a published file (.pth, or its names in .safetensors), a run folder of ours or one of its checkpoints. Nothing
in a file is run. `to=safetensors` writes a folder that `pretrained=` of finetune.py takes, with the model's config;
`to=published` writes the published names. Both are read again and compared. A finished run, or any of the above, in
two lines of Python:

    from mien.experiments.doctor import load
    task = load("output/dfew_fold1")  # task.predict({"clip": clips}), clips uint8 (b, t, h, w, c)

The exit code is 0 where everything loads, 1 where something does not, 2 where the call was wrong.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor

from mien.data_pipelines.fingerprint import PUBLISHED
from mien.models import description, published, tasks
from mien.models.backbone import BackboneConfig, Task
from mien.models.expression import Expression, ExpressionConfig
from mien.models.loading import Report, load_backbone, load_strictly
from mien.models.lora import LoraConfig, merged
from mien.models.published_code import flags_there, otherwise_there
from mien.models.tasks import TaskConfig
from mien.platform import checkpoint
from mien.platform.config import ConfigError, dump, parse, plain, run_program
from mien.platform.progress import table
from mien.platform.storage import readable, storing, sync

LISTED = 12  # names printed of one kind
TASK: TypeAdapter[Any] = TypeAdapter(TaskConfig)


class DoctorConfig(BaseModel, frozen=True, extra="forbid"):
    """Which file, and what to make of it."""

    file: str = Field("output/demo/pretrain", description="file or folder of weights; may be given as the first word")
    to: Literal["safetensors", "published"] | None = Field(None, description="format to write, to --output")
    merge: bool = Field(False, description="add adapters (lora) to the weights: what is written is a plain model")
    ema: bool = Field(False, description="take the moving average of a run's weights")
    frames: int | None = Field(
        None, description="frames of a clip, which a published file need not tell; null: 16", gt=0
    )
    size: int | None = Field(None, description="height and width, which it need not tell; null: 160", gt=0)
    region: tuple[int, int, int] | None = Field(None, description="region, where a published file fits several")


class Weights(NamedTuple):
    """Weights of ours by name or, with `published`, of others; the model they are of, and what is said beside them."""

    state: dict[str, Tensor]
    config: Any  # a task's config
    published: bool
    about: dict[str, Any]


def open_weights(path: str | Path, *, ema: bool = False, **known: Any) -> Weights:
    """Read a published file, or a run folder or checkpoint of ours.

    `known` are settings of `describe` that the file does not tell. Raises ValueError where it is none of these, is
    damaged, would run code, or is of no model that we know.
    """
    path, known = Path(path), {name: value for name, value in known.items() if value is not None}
    if not path.exists():
        raise ConfigError(
            f"expected a published file, a checkpoint or the folder of a run that has one, but {path} does not exist"
        )
    if path.is_dir():
        if known:
            raise ConfigError(f"{', '.join(known)}: {path} tells these itself; leave them out")
        about = checkpoint.about(path)
        return Weights(checkpoint.weights(path, ema), TASK.validate_python(about["task"]), False, about)
    if ema:
        raise ConfigError(f"only a run's folder holds a moving average, but {path} is a file; leave ema out")
    state, beside = published.read_file(path)
    if "backbone.embed.weight" in map(published.unwrapped, state):
        raise ValueError(f"{path} is one file of a checkpoint of ours; give its folder, which holds the config too")
    if "mien" in beside and not known:
        return Weights(state, TASK.validate_python(beside["mien"]["task"]), True, beside)
    args = beside.get("args")
    told = description.told(args) if isinstance(args, dict) else {}
    return Weights(state, description.describe(state, **{**told, **known}), True, beside)


def load(path: str | Path, *, ema: bool = False, **known: Any) -> Task:
    """Return the trained task that a run folder, checkpoint or published file holds, ready to predict."""
    return filled(open_weights(path, ema=ema, **known)).eval()


def filled(weights: Weights) -> Task:
    """Return the task of some weights. Raises ValueError where they do not fit, by name."""
    task = tasks.build(weights.config)
    if weights.published:
        published.load(task, weights.state, own="mien" in weights.about)
    else:
        load_strictly(task, weights.state, {}, {})
    return task


def pretrained_backbone(path: str, asked: BackboneConfig) -> BackboneConfig:
    """Return the backbone's config of what fine-tuning begins with; what a published file does not tell is as asked."""
    if Path(path).is_dir():
        config = TASK.validate_python(checkpoint.about(Path(path))["task"])
    else:
        tubes = asked.tubes
        known: dict[str, Any] = {"frames": tubes.frames, "size": tubes.size, "region": asked.region}
        known["tubelet"] = tubes.tubelet  # which counts for filters of single frames
        config = open_weights(path, **(known if asked != BackboneConfig() else {})).config
    backbone: BackboneConfig = config.backbone
    return backbone


def load_pretrained(
    task: Task, path: str, norm: Literal["new", "pretrained"], source: BackboneConfig | None, *, ema: bool = False
) -> Report:
    """Load the backbone of a published file or of one of our runs into a task that begins to learn.

    An autoencoder takes a decoder as well, where there is one. `source` is the file's backbone where it is to be
    adapted, `ema` asks for the moving average of a run's weights. A run's adapters are added to its weights.
    """
    if Path(path).is_file():
        state, beside = published.read_file(path)
        return published.load(task, state, norm, head="new", source=source, own="mien" in beside)
    lora, state = checkpoint.about(Path(path))["task"].get("lora"), checkpoint.weights(Path(path), ema)
    return load_backbone(task, merged(state, LoraConfig.model_validate(lora)) if lora else state, norm, source)


def check_average(path: str | None) -> None:
    """Raise ConfigError where `path` is no run with a moving average of its weights."""
    if path is None or not Path(path).is_dir() or not checkpoint.has_average(Path(path)):
        raise ConfigError(
            f"pretrained_ema begins with the moving average of a run's weights, but {path} holds none: it comes from "
            "loop.ema_decay of the run that pretrains; leave pretrained_ema out to begin with its own weights"
        )


def trained_on(path: str) -> Any:
    """Return the fingerprint of the clips that pretrained weights were trained on, or None where it is not known."""
    if Path(path).is_dir():
        return checkpoint.about(Path(path)).get("inputs", {}).get("trained_on")
    return PUBLISHED["pretraining" if "mask_token" in published.read_state(path) else "fine-tuning"]


def plainly(weights: Weights, task: Task) -> tuple[Any, Task]:
    """Return the config and task without adapters, which are added to the weights."""
    config = weights.config
    if getattr(config, "lora", None) is None:
        return config, task
    config = config.model_copy(update={"lora": None})
    bare = tasks.build(config)
    bare.load_state_dict(merged(task.state_dict(), weights.config.lora), strict=True)
    return config, bare


def what(weights: Weights) -> dict[str, str]:
    """Return in words what weights are."""
    config, state = weights.config, weights.state
    encoder, tubes = config.backbone.encoder, config.backbone.tubes
    kinds = {
        "mae": "pretraining (masked autoencoder)",
        "gaze": f"gaze ({getattr(config, 'gaze_head', '')} head)",
        "expression": f"expression ({getattr(config, 'num_classes', '')} classes)",
        "combined": f"expression and gaze ({getattr(config, 'num_classes', '')} classes)",
    }
    numbers = sum(value.numel() for value in state.values())
    types = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in state.values()}))
    size = readable(sum(value.nbytes for value in state.values()))
    region = f", region {'x'.join(map(str, config.backbone.region))}" if config.backbone.region else ""
    lora = getattr(config, "lora", None)
    adapters = f", adapters of rank {lora.rank}" if lora is not None and lora.rank else ""
    epoch = weights.about.get("epoch")
    return {
        "task": kinds[config.name],
        "format": "published names" if weights.published else "a checkpoint of ours",
        "encoder": f"{encoder.name}, {encoder.depth} blocks of width {encoder.width}{region}{adapters}",
        "clip": f"{tubes.frames} frames of {tubes.size} x {tubes.size}",
        "weights": f"{len(state):,} tensors, {numbers:,} numbers, {size}, {types}",
        "classes": ", ".join(weights.about.get("classes") or ()),
        "epoch": "" if epoch is None else str(epoch),
        "in the published code": flags_there(config) or "",
    }


def problems_of(state: dict[str, Tensor]) -> list[str]:
    """Return what is wrong with the numbers themselves."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return [f"{len(broken)} tensors hold NaN or infinity: {shortened(broken)}"] if broken else []


def shortened(names: Sequence[str]) -> str:
    """Return some of many names."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def as_pretrained(weights: Weights) -> Report:
    """Return what fine-tuning for expression takes of some weights, and what not."""
    backbone = weights.config.backbone
    task = Expression(ExpressionConfig(backbone=backbone, pool="patch"))
    if weights.published:
        return published.load(task, weights.state, head="new", own="mien" in weights.about)
    lora = getattr(weights.config, "lora", None)
    return load_backbone(task, merged(weights.state, lora) if lora else weights.state)


def write(weights: Weights, task: Task, settings: DoctorConfig, output: Path) -> None:
    """Write the weights in the other format, read them again and compare. Raises ValueError where output exists."""
    config, task = plainly(weights, task) if settings.merge else (weights.config, task)
    about = {key: value for key, value in weights.about.items() if key not in ("args", "mien", "epoch")}
    about["task"] = plain(config)
    if settings.to == "safetensors":
        if weights.published:
            trained_on = PUBLISHED["pretraining" if config.name == "mae" else "fine-tuning"]
            about = {**weights.about.get("mien", {"inputs": {"trained_on": trained_on}}), **about}
        checkpoint.export(output, task.state_dict(), about)
    else:
        write_published(task, about, output)
        for note in otherwise_there(config):
            print(f"note: the published code differs from this model: {note}")
    again = filled(open_weights(output)).state_dict()
    for name, value in task.state_dict().items():
        if not torch.allclose(again[name], value, rtol=1e-6, atol=0):
            raise RuntimeError(f"{output}: {name} is not what was written; the disk may be failing")
    print(f"wrote {output}: {len(again):,} tensors, read again and the same")


def write_published(task: Task, about: dict[str, Any], output: Path) -> None:
    """Write a file with published names, and with what rebuilds the model beside them."""
    if output.suffix != ".pth" or output.exists():
        raise ConfigError(f"to=published writes a new file that ends in .pth, but --output is {output}; give another")
    temporary = output.with_name(f".{output.name}.new")
    try:
        with storing(output.parent, sum(value.nbytes for value in task.state_dict().values())):
            output.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": published.save(task), "mien": about}, temporary)
            sync(temporary)
            temporary.rename(output)
            sync(output.parent)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> None:
    """Read the command line, say what the file is, and write what was asked for; exit code 1 where it does not load."""
    call = parse(DoctorConfig, argv, __doc__, first="file")
    settings = call.config
    if (settings.to is None) != (call.output is None):
        raise ConfigError("to= and --output belong together: give the format and where to write, or neither")
    if call.dry_run:
        print(dump(settings))
        return
    try:
        weights = open_weights(
            settings.file, ema=settings.ema, frames=settings.frames, size=settings.size, region=settings.region
        )
        table([{"": name, " ": value} for name, value in what(weights).items() if value], settings.file)
        print("\nThe config that rebuilds it (`task` of a recipe):\n")
        print(yaml.safe_dump(plain(weights.config), sort_keys=False, allow_unicode=True, default_flow_style=None))
        spoilt = problems_of(weights.state)
        for problem in spoilt:
            print(f"spoilt: {problem}")
        print(f"As pretrained= of finetune.py: {as_pretrained(weights)}")
        task = filled(weights)
    except ConfigError:
        raise
    except ValueError as error:
        print(f"does not load: {error}")
        raise SystemExit(1) from None
    if spoilt:
        raise SystemExit(1)
    print(f"loads: all of its {len(weights.state):,} tensors, by name and shape")
    if call.output is not None:
        write(weights, task, settings, call.output)


if __name__ == "__main__":
    run_program(main)
