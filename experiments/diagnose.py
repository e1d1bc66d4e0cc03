"""Say in about a minute why a training would not learn: with a run's own recipe, before days are spent on it.

    python experiments/diagnose.py finetune --config experiments/configs/finetune_dfew.yaml --output output/diagnosed
    python experiments/diagnose.py pretrain --config experiments/configs/debug/pretrain.yaml --output output/diagnosed

The first word names the program whose settings follow. Four checks: eight clips must be learned by heart; after
shuffled labels validation must stay at chance; no layer's gradient may be zero or far from the others'; few steps may
be left out for overflow. It prints a verdict on each, writes diagnosis.json, and ends with 1 where one is wrong.
Test clips stay closed. Large models on a CPU: lower diagnose.steps, diagnose.overfit_steps and diagnose.shuffle_steps.
"""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, Field

from mien.data_pipelines import mixing, reading
from mien.data_pipelines.label_checks import few, with_shuffled_labels
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import ReadConfig
from mien.experiments import finetune, pretrain
from mien.experiments.finetune import FinetuneConfig
from mien.experiments.pretrain import PretrainConfig
from mien.models import tasks
from mien.models.backbone import Task
from mien.models.mae import MaskedAutoencoder
from mien.platform import diagnosis, predict, scores
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.diagnosis import Finding
from mien.platform.loop import Batch, NonFiniteError, autocast
from mien.platform.optim import peak_rate
from mien.platform.storage import write_whole
from mien.platform.training import check_schedule, device_here

# Of a task and a batch: whether it is learned by heart, in words, and in numbers.
Judge = Callable[[Task, Batch], tuple[bool, str, dict[str, float]]]
LOOK_EVERY = 10  # steps from one look at what is learned by heart to the next
PAINTED = 0.8  # of the loss before training, when nothing is painted; small decoders cannot do much better


class DiagnoseConfig(BaseModel, frozen=True, extra="forbid"):
    """How long is looked."""

    clips: int = Field(8, description="clips that are to be learned by heart", gt=1)
    overfit_steps: int = Field(200, description="most steps in which they are to be", gt=0)
    rates: tuple[float, ...] = Field((1e-3, 1e-4), description="rates tried where the run's own does not do it")
    steps: int = Field(20, description="first steps of the run whose gradients are looked at", gt=0)
    shuffles: int = Field(3, description="times that labels are shuffled and learned; 0: left out", ge=0)
    shuffle_steps: int = Field(60, description="steps of each of these trainings", gt=1)
    shuffle_clips: int = Field(128, description="most clips they learn from, and most they are judged on", gt=1)


class FinetuneDiagnosis(FinetuneConfig, frozen=True, extra="forbid"):
    """A fine-tuning and how it is looked at."""

    diagnose: DiagnoseConfig = DiagnoseConfig()


class PretrainDiagnosis(PretrainConfig, frozen=True, extra="forbid"):
    """A pretraining and how it is looked at."""

    diagnose: DiagnoseConfig = DiagnoseConfig()


class Case(NamedTuple):
    """What is diagnosed: how its task is made, and its training clips."""

    make: Callable[[], Task]
    manifest: Manifest
    train: np.ndarray
    read: ReadConfig
    config: FinetuneDiagnosis | PretrainDiagnosis


def tensors(batch: reading.Batch) -> dict[str, torch.Tensor]:
    """Return a batch of arrays as tensors."""
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def batches(case: Case, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Yield the run's training batches over manifest lines; clips that cannot be read are missing."""
    stream = reading.local_batches(case.manifest, rows, batch_size, case.config.loop.seed, case.read, threads=2)
    for arrays, dropped in stream:
        for record in dropped:
            print(f"not read: {record['path']}: {record['reason']}")
        if len(arrays["row"]):
            yield mixing.separated(tensors(arrays), case.read.sampling.num_samples)


def plain_read(read: ReadConfig) -> ReadConfig:
    """Return how clips are read without augmentation."""
    return read.model_copy(update={"augment": read.augment.model_copy(update={"kind": "none"})})


def without_chance(config: FinetuneDiagnosis) -> FinetuneDiagnosis:
    """Return the config without what keeps a model from learning clips by heart."""
    backbone = config.task.backbone
    known: dict[str, Any] = {"smoothing": 0.0} if "smoothing" in type(config.task).model_fields else {}
    encoder = backbone.encoder.model_copy(update={"drop_path": 0.0})
    task = config.task.model_copy(update={"backbone": backbone.model_copy(update={"encoder": encoder}), **known})
    return config.model_copy(update={"task": task})


def peak(case: Case) -> float:
    """Return the run's largest learning rate."""
    return peak_rate(case.config.optim, case.config.loop.batch_size)


def made(case: Case) -> Task:
    """Return the task anew on its device; what was loaded into it is told once, before."""
    with redirect_stdout(io.StringIO()):
        task = case.make()
    return task.to(device_here())


def overfit(case: Case, judge: Judge) -> Finding:
    """Try to learn a few clips by heart, at the run's rate and at others; `judge` says whether they are."""
    chosen = few(case.manifest, case.train, case.config.diagnose.clips)
    examples = [reading.read_views(case.manifest.row(row), row, plain_read(case.read))[0] for row in chosen.tolist()]
    batch = tensors(reading.collate(examples, case.read))
    batch = {name: value for name, value in batch.items() if name != "view"} | {"draw": torch.arange(len(chosen))}
    tried: list[dict[str, Any]] = []
    for lr in (peak(case), *(rate for rate in case.config.diagnose.rates if not 0.5 < rate / peak(case) < 2)):
        task = made(case)
        loop = diagnosis.short_loop(case.config.loop, case.config.diagnose.overfit_steps, len(chosen))
        found = judge(task, batch)

        def learned(step: int, task: Task = task) -> bool:
            nonlocal found
            found = judge(task, batch) if step % LOOK_EVERY == 0 else found
            return found[0]

        optim = diagnosis.short(case.config.optim, lr, loop.steps or 1)
        try:
            records = diagnosis.train_briefly(task, itertools.repeat(batch), loop, optim, learned)
            found = judge(task, batch)
        except NonFiniteError:
            found, records = (False, "the loss became no number", {}), []
        tried.append({"lr": lr, "learned": found[0], "words": found[1], "steps": len(records), **found[2]})
        if found[0]:
            break
    return diagnosis.memorised(tried, len(chosen))


def labelled_judge(config: FinetuneDiagnosis, case: Case) -> Judge:
    """Return what says whether labels and gaze of a batch are known by heart."""

    def judge(task: Task, batch: Batch) -> tuple[bool, str, dict[str, float]]:
        found = answers(task, [batch], config)
        truth = case.manifest.table.take(found["row"])
        return diagnosis.by_heart(found, truth, tasks.labels_of(config.task))

    return judge


def painted_judge(case: Case) -> Judge:
    """Return what says whether hidden tubes are painted far better than before training."""
    before: dict[int, float] = {}

    def judge(task: Task, batch: Batch) -> tuple[bool, str, dict[str, float]]:
        plain: Any = task
        with autocast(device_here(), case.config.loop.precision):
            answer = plain.predict({name: value.to(device_here()) for name, value in batch.items()})
            loss = float(answer["loss"].mean())
        first = before.setdefault(id(task), loss)
        return loss < PAINTED * first, f"loss from {first:.3g} to {loss:.3g}", {"before": first, "after": loss}

    return judge


def answers(task: Task, given: Sequence[Batch] | Iterator[reading.Batch], config: FinetuneDiagnosis) -> pa.Table:
    """Return what a labelled task says, a row a view."""
    last = config.data.sampling.ends_with_label
    return predict.predict(task, given, device_here(), config.loop.precision, last_frame=last)


def shuffled(case: Case, val: np.ndarray, config: FinetuneDiagnosis) -> Finding:
    """Learn shuffled labels and judge on validation, which holds the true ones; for comparison, learn true ones too."""
    look, classes = case.config.diagnose, len(case.manifest.classes)
    rng = np.random.default_rng(0)
    train, val = (np.sort(rng.permutation(part)[: look.shuffle_clips]) for part in (case.train, val))
    case = case._replace(train=train, read=plain_read(case.read))
    truth = case.manifest.table.take(val)
    gaze, by_class = scores.columns(truth, "pitch", "yaw"), "label" in tasks.labels_of(config.task)
    label = np.array([-1 if value is None else value for value in truth["label"].to_pylist()])
    known = np.flatnonzero(label >= 0 if by_class else ~np.isnan(gaze).any(1))
    loop = diagnosis.short_loop(case.config.loop, look.shuffle_steps, min(case.config.loop.batch_size, len(train)))
    optim = diagnosis.short(case.config.optim, peak(case), look.shuffle_steps)

    def judged(manifest: Manifest) -> tuple[float, float]:
        task = made(case)
        fed = batches(case._replace(manifest=manifest), train, loop.batch_size)
        diagnosis.train_briefly(task, fed, loop, optim, lambda step: False)
        views = answers(task, reading.local_views(manifest, val, loop.batch_size, case.read, threads=2), config)
        videos = predict.merge(views, manifest.table, val)
        if by_class:
            guess = scores.matrix(videos["probabilities"]).argmax(1)[known]
            return diagnosis.by_chance(lambda order: scores.recall(label[known][order], guess), len(known), seed=0)
        told = scores.columns(videos, "pred_pitch", "pred_yaw")[known]
        error, p = diagnosis.by_chance(
            lambda order: -float(scores.angular_error(gaze[known][order], told).mean()), len(known), seed=0
        )
        return -error, p

    tried = [judged(with_shuffled_labels(case.manifest, train, seed)) for seed in range(look.shuffles)]
    true = judged(case.manifest)
    if by_class:
        return diagnosis.shuffled("UAR", 1 / classes, true, tried)
    constant = diagnosis.constant_error(gaze[known], scores.columns(case.manifest.table.take(train), "pitch", "yaw"))
    return diagnosis.shuffled("gaze error", constant, true, tried, "°")


def diagnose_finetune(config: FinetuneDiagnosis) -> Iterator[Finding]:
    """Yield what each check finds of a fine-tuning."""
    known, fold = finetune.opened(config)
    assert isinstance(known, FinetuneDiagnosis)
    config = known
    finetune.make_task(config)  # tells what is loaded
    quiet = without_chance(config)

    def case(one: FinetuneDiagnosis) -> Case:
        return Case(lambda: finetune.make_task(one), fold.manifest, fold.split.train, fold.read, one)

    mix = "gaze" not in tasks.labels_of(config.task)
    fed = batches(case(config), fold.split.train, config.loop.batch_size)
    mixed = (
        mixing.mix(dict(batch), config.loop.seed + step, config.data.mixing) if mix else batch
        for step, batch in enumerate(fed)
    )
    yield overfit(case(quiet), labelled_judge(quiet, case(quiet)))
    if config.diagnose.shuffles:
        yield shuffled(case(quiet), fold.split.val, quiet)
    yield from observed(case(config), mixed)


def diagnose_pretrain(config: PretrainDiagnosis) -> Iterator[Finding]:
    """Yield what each check finds of a pretraining, which has no labels to shuffle."""
    manifest, read = pretrain.open_data(config)
    check_schedule(config.optim, config.loop, len(manifest))
    rows = np.arange(len(manifest))

    def make() -> Task:
        torch.manual_seed(config.loop.seed)
        return MaskedAutoencoder(config.task)

    case = Case(make, manifest, rows, read, config)
    yield overfit(case, painted_judge(case))
    yield Finding("shuffled labels", "left out", "pretraining has no labels", {})
    yield from observed(case, batches(case, rows, config.loop.batch_size))


def observed(case: Case, fed: Iterator[Batch]) -> list[Finding]:
    """Return what the run's own first steps show."""
    task, clips = made(case), len(case.train)
    return diagnosis.observe(
        task, fed, case.config.loop, case.config.optim, num_clips=clips, steps=case.config.diagnose.steps
    )


def main(argv: Sequence[str]) -> None:
    """Read the command line, look, and end with 1 where something is wrong."""
    kinds: dict[str, Any] = {
        "finetune": (FinetuneDiagnosis, diagnose_finetune),
        "pretrain": (PretrainDiagnosis, diagnose_pretrain),
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nSettings: diagnose.py finetune --help, diagnose.py pretrain --help")
        return
    if argv[0] not in kinds:
        raise ConfigError(f"the first word must be finetune or pretrain, whose settings follow; got {argv[0]!r}")
    config_class, look = kinds[argv[0]]
    call = parse(config_class, argv[1:], __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    found = []
    for finding in look(call.config):
        found.append(finding)
        print(f"{finding.verdict:>8}  {finding.check}: {finding.words}", flush=True)
        for row in finding.numbers.get("layers", ()):
            print(f"{'':10}{row['layer']:<20} gradient {row['gradient']:.3g}, weights {row['weights']:.3g}")
    output = call.output or Path("output/diagnosed")
    output.mkdir(parents=True, exist_ok=True)
    told = {"program": argv[0], "findings": [finding.plain() for finding in found]}
    write_whole(output / "diagnosis.json", json.dumps(told, indent=1) + "\n")
    if any(finding.verdict == "wrong" for finding in found):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
