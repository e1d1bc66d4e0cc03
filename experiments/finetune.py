"""Fine-tune a pretrained encoder for expression, gaze or both on one fold, and score it on validation.

    python experiments/finetune.py --config experiments/configs/finetune_dfew.yaml --output output/dfew_fold1 \\
        data.manifest=output/dfew/manifest.parquet data.fold=1 pretrained=output/pretrain

The backbone and its sizes come from the checkpoint. Validation is taken out of train; the test clips stay closed until
`evaluate.py` opens them. The run folder gets `predictions/val.parquet` and `scores.json` at the end.
The same functions judge a trial of a study (`tune_dfew.py`), with clips that all trials share.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import yaml
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor

from mien.data_pipelines import reading
from mien.data_pipelines.fingerprint import Fingerprint
from mien.data_pipelines.fold import DataConfig, Fold, open_clips
from mien.data_pipelines.reading import Files
from mien.experiments.doctor import check_average, load_pretrained, pretrained_backbone, trained_on
from mien.models import tasks
from mien.models.adaptation import AdaptConfig, adapted_config
from mien.models.backbone import BackboneConfig, FeatureTask
from mien.models.combined import CombinedConfig
from mien.models.expression import ExpressionConfig
from mien.models.gaze import GazeConfig
from mien.platform import checkpoint, predict, scores
from mien.platform.config import ConfigError, dump, parse, plain, rebuild, run_program
from mien.platform.interrupt import Interrupt
from mien.platform.loop import LoopConfig, averaged
from mien.platform.optim import OptimConfig, told_rate
from mien.platform.progress import table
from mien.platform.run import Run, differences, interruptible, records
from mien.platform.sizes import sizes
from mien.platform.storage import write_whole
from mien.platform.training import check_schedule, device_here, run_training

if TYPE_CHECKING:  # alone, a run needs no Ray
    from mien.platform.worker import Here

LabelledTask = Annotated[ExpressionConfig | GazeConfig | CombinedConfig, Field(discriminator="name")]


class FinetuneConfig(BaseModel, frozen=True, extra="forbid"):
    """One fine-tuning run."""

    data: DataConfig = DataConfig()
    pretrained: str | None = Field(
        None, description="run folder or checkpoint of a pretraining, or a published .pth file; null: from scratch"
    )
    pretrained_ema: bool = Field(False, description="begin with the moving average of the pretraining run's weights")
    adapt: AdaptConfig = AdaptConfig()
    pretrained_norm: bool = Field(False, description="start the pooled norm from the autoencoder's; published: new")
    drop_path: float = Field(0.1, description="stochastic depth of the last block while fine-tuning", ge=0, lt=1)
    task: LabelledTask = Field(CombinedConfig(), description="what is learned; the number of classes is the manifest's")
    optim: OptimConfig = OptimConfig(layer_decay=0.75)
    loop: LoopConfig = LoopConfig()
    evaluate_ema: bool = Field(False, description="judge, on validation and test, the moving average of weights")


def open_fold(config: FinetuneConfig) -> Fold:
    """Read the clips of a completed config."""
    task, tubes = config.task, config.task.backbone.tubes
    gaze = "gaze" in tasks.labels_of(task)
    return open_clips(config.data, frames=tubes.frames, size=tubes.size, gaze=gaze, per_frame=task.per_frame)


def opened(config: FinetuneConfig) -> tuple[FinetuneConfig, Fold]:
    """Return the config with what checkpoint and manifest decide, and the clips."""
    config = completed(config)
    fold = open_fold(config)
    check_schedule(config.optim, config.loop, len(fold.split.train), ema=config.evaluate_ema)
    check_labels(config, fold)
    return with_classes(config, fold.manifest.classes), fold


def check_labels(config: FinetuneConfig, fold: Fold) -> None:
    """Raise ConfigError where a label that is to be learned is on no training clip, or lost by augmentation."""
    if "gaze" in (learned := tasks.labels_of(config.task)) and not fold.read.augment.keeps_gaze:
        raise ConfigError("gaze cannot follow data.augment.kind=pretrain; set it to finetune or none")
    known = fold.manifest.table.take(fold.split.train)
    for name, column, other in (("label", "label", "task.alpha=0"), ("gaze", "pitch", "task.gaze_weight=0")):
        if name in learned and known[column].null_count == len(known):
            raise ConfigError(
                f"{config.task.name} learns from each clip's {name}, but none of the {len(known):,} training clips of "
                f"{config.data.manifest} has one; prepare them with it, set another task.name or, for combined, {other}"
            )


def completed(config: FinetuneConfig) -> FinetuneConfig:
    """Return the config with the backbone of the checkpoint, if there is one, and stochastic depth of fine-tuning."""
    backbone = config.task.backbone
    if config.pretrained_ema:
        check_average(config.pretrained)
    if config.pretrained is not None:
        saved = pretrained_backbone(config.pretrained, backbone)
        if backbone not in (saved, BackboneConfig()):
            raise ConfigError(
                f"task.backbone comes from the checkpoint {config.pretrained}, but the settings ask for another:"
                f"{differences(plain(saved), plain(backbone))}\nleave task.backbone out, or pretrain that one first"
            )
        if config.adapt != AdaptConfig() and backbone != BackboneConfig():
            raise ConfigError(
                "adapt says what differs from the pretrained backbone, so leave task.backbone out; a published file of "
                "other frames, size or region is first given its config by doctor.py to=safetensors"
            )
        backbone = adapted_config(saved, config.adapt)
    elif config.adapt != AdaptConfig():
        raise ConfigError("adapt changes a pretrained backbone, but pretrained is null; set task.backbone instead")
    elif config.task.lora is not None and config.task.lora.frozen:
        raise ConfigError("task.lora freezes the backbone, but without pretrained= it is noise; set task.lora=null")
    encoder = backbone.encoder.model_copy(update={"drop_path": config.drop_path})
    return with_task(config, backbone=backbone.model_copy(update={"encoder": encoder}))


def with_classes(config: FinetuneConfig, classes: Sequence[str]) -> FinetuneConfig:
    """Return the config for as many classes as the manifest names."""
    if config.task.name == "gaze":
        return config
    if not classes:
        raise ConfigError(f"task {config.task.name} needs classes, but {config.data.manifest} names none")
    return with_task(config, num_classes=len(classes))


def with_task(config: FinetuneConfig, **known: Any) -> FinetuneConfig:
    """Return the config with fields of its task replaced, and checked again."""
    task = config.task.model_copy(update=known)
    return config.model_copy(update={"task": rebuild(type(task), plain(task))})


def inputs(config: FinetuneConfig, fold: Fold) -> dict[str, Fingerprint | None]:
    """Return the fingerprints of what a run is trained on and of what its pretrained weights were, where known."""
    before = None if config.pretrained is None else trained_on(config.pretrained)
    return {"trained_on": fold.fingerprint("train", config.data.manifest), "pretrained_on": before}


def make_task(config: FinetuneConfig) -> FeatureTask:
    """Build the task of a completed config, its backbone from the pretrained weights; print what was loaded."""
    torch.manual_seed(config.loop.seed)
    task = tasks.build(config.task)
    assert isinstance(task, FeatureTask)
    if config.pretrained is not None:
        norm: Literal["pretrained", "new"] = "pretrained" if config.pretrained_norm else "new"
        source = None if config.adapt == AdaptConfig() else pretrained_backbone(config.pretrained, BackboneConfig())
        report = load_pretrained(task, config.pretrained, norm, source, ema=config.pretrained_ema)
        print(f"{config.pretrained}: {report}")
    return task


def training_batches(
    config: FinetuneConfig, fold: Fold, run: Run, start_step: int, sources: Files | None, here: "Here | None" = None
) -> Iterator[dict[str, Tensor]]:
    """Yield this worker's part of the batches from a step on; unreadable clips go to dropped.jsonl, and may be few."""
    mixed = "gaze" not in tasks.labels_of(config.task)  # what is between two clips looks nowhere
    size, seed = config.loop.batch_size, config.loop.seed
    part = (here.rank * size // here.world, (here.rank + 1) * size // here.world) if here else None
    return fold.batches(config.data, size, seed, start_step, run.dropped, mixed=mixed, sources=sources, part=part)


def train_gaze(fold: Fold) -> np.ndarray | None:
    """Return the known gaze of the training clips, (n, 2) radians: what the constant answer is made of."""
    return scores.known_gaze(fold.manifest.table.take(fold.split.train))


def validate(
    task: FeatureTask,
    config: FinetuneConfig,
    fold: Fold,
    rows: np.ndarray,
    sources: Files | None,
    seed: int,
    gaze: np.ndarray | None,
) -> tuple[Any, dict[str, Any]]:
    """Predict manifest lines and score them; return (one row a video, scores). `gaze` is that of train."""
    batches = reading.local_views(
        fold.manifest, rows, config.loop.clips_at_once, fold.read, threads=config.data.threads, sources=sources
    )
    last = fold.read.sampling.ends_with_label
    views = predict.predict(task, batches, device_here(), config.loop.precision, last_frame=last)
    videos = predict.merge(views, fold.manifest.table, rows)
    found = scores.scores(videos, fold.manifest.classes, seed, train_gaze=gaze)
    about = {"num_train_clips": len(fold.split.train), "fingerprint": fold.manifest.fingerprint()}
    return videos, found | about | {"protocol": fold.split.protocol, "views": fold.read.sampling.views_told}


def finetune(
    config: FinetuneConfig,
    output: Path,
    sources: Files | None = None,
    interrupt: Interrupt | None = None,
    here: "Here | None" = None,
) -> dict[str, Any]:
    """Train on one fold and score its validation clips; a folder that is finished only gives its scores back.

    `sources` are the manifest's encoded files where they are in memory already (`reading.load_manifest`). Of several
    workers, which `here` tells apart, the first writes, validates and returns the scores; the others return none.
    """
    record, first = output / "scores.json", here is None or here.rank == 0
    if record.is_file():
        if first:
            Run.start(output, config, seed=config.loop.seed).close()
        return json.loads(record.read_text(encoding="utf-8"))
    given = config
    config, fold = opened(config)  # what is wrong is said before there is a folder, which belongs to one config
    task = make_task(config).to(here.device if here else device_here())
    with Run.start(output, given, seed=config.loop.seed) if first else Run(output) as run:
        about: dict[str, Any] = {"task": plain(config.task), "classes": fold.manifest.classes, "fold": config.data.fold}
        about |= {"fingerprint": fold.manifest.fingerprint(), "protocol": fold.split.protocol}
        about |= {"inputs": inputs(config, fold)}
        if first:
            write_whole(output / "inputs.json", json.dumps(about["inputs"], indent=1) + "\n")
        state = run_training(
            task,
            lambda start_step: training_batches(config, fold, run, start_step, sources, *([here] if here else [])),
            config.optim,
            config.loop,
            run,
            num_clips=len(fold.split.train),
            about=about,
            label=output.name,
            **(here.told() if here else {"interrupt": interrupt}),
        )
        if not first:
            return {}
        seed, gaze = config.loop.seed, train_gaze(fold)
        by_weights: dict[str, Any] = {}  # both where there is an average; the last is what counts
        order = ("own", "ema") if config.evaluate_ema else ("ema", "own")
        for which in order if state.ema else ("own",):
            with averaged(task, state) if which == "ema" else nullcontext():
                videos, found = validate(task, config, fold, fold.split.val, sources, seed, gaze)
            by_weights[which] = numbers = {name: found[name] for name in scores.NAMES if name in found}
            split = "val" if (which == "ema") == config.evaluate_ema else f"val_{which}"
            if not any(f"{split}/" in str(line) for line in records(output / "metrics.jsonl")):  # else killed since
                run.log({"step": state.step, **numbers}, split=split)
        found |= {"weights": which, "by_weights": by_weights} if state.ema else {}
        predict.write(videos, output / "predictions" / "val.parquet")
    write_whole(record, json.dumps(found, indent=1) + "\n")
    return found


def load_task(folder: Path) -> tuple[FinetuneConfig, FeatureTask, dict[str, Any]]:
    """Return the config and trained task of a finished run, and what its checkpoint says; its clips may be gone."""
    config = rebuild(FinetuneConfig, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    # What the model is, and which classes it knows, stands in the checkpoint: the pretrained file may be gone.
    about = checkpoint.about(folder)
    config = config.model_copy(update={"task": TypeAdapter(LabelledTask).validate_python(about["task"])})
    task = tasks.build(config.task)
    assert isinstance(task, FeatureTask)
    task.load_state_dict(checkpoint.weights(folder, ema=config.evaluate_ema), strict=True)
    return config, task, about


def load_run(folder: Path) -> tuple[FinetuneConfig, Fold, FeatureTask]:
    """Return the config, the clips and the trained task of a finished run folder."""
    config, task, about = load_task(folder)
    return config, own_clips(folder, config, about), task


def own_clips(folder: Path, config: FinetuneConfig, about: dict[str, Any]) -> Fold:
    """Return the clips of a finished run, of which its checkpoint says `about`; ConfigError where they have changed."""
    fold = open_fold(config)
    if list(fold.manifest.classes) != about["classes"] or fold.manifest.fingerprint() != about["fingerprint"]:
        raise ConfigError(
            f"{folder} was trained on a manifest with fingerprint {about['fingerprint']}, but {config.data.manifest} "
            f"has {fold.manifest.fingerprint()} now; folds may hold other clips: prepare it as it was, or train anew"
        )
    return fold


def run_sizes(config: FinetuneConfig, fold: Fold) -> dict[str, str]:
    """Return what a completed config amounts to, for a dry run."""
    tubes = config.task.backbone.tubes
    clip = torch.zeros(1, tubes.frames, tubes.size, tubes.size, 3, dtype=torch.uint8)
    return sizes(tasks.build(config.task), clip, tubes.num_tokens, len(fold.split.train), config.loop, config.optim)


def main(argv: Sequence[str]) -> None:
    """Read the command line and fine-tune."""
    call = parse(FinetuneConfig, argv, __doc__)
    if call.dry_run:
        config, fold = opened(call.config)
        print(dump(config))
        table([{"size": name, "value": value} for name, value in run_sizes(config, fold).items()])
        return
    output = call.output or Path("output/finetune")
    print(told_rate(call.config.optim, call.config.loop.batch_size))
    with interruptible(Run(output), between_steps=True) as interrupt:
        found = finetune(call.config, output, interrupt=interrupt)
    print(scores.summary(found, title=f"validation, protocol {found['protocol']}"))


if __name__ == "__main__":
    run_program(main)
