"""Why a training does not learn: what can be told in a minute, before days are spent on it.

A model that cannot learn eight clips by heart has a wrong loss, rate or wiring. One that foretells validation after
learning shuffled labels has seen its labels. Gradients that are zero, no numbers or of very different sizes show which
layer does not learn. Here are the checks on a task and its batches, and the words for what they found.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from torch import nn

from mien.platform.loop import Batch, LoopConfig, NonFiniteError, start, train
from mien.platform.optim import OptimConfig
from mien.platform.scores import angles, angular_error, columns, directions, matrix

BY_HEART = 0.1  # of the cross-entropy or gaze error of a constant answer
LEAST_DEG = 0.5  # of gaze error that counts as none
SPREAD = 1000  # of gradient norms between blocks; healthy ones lie within some tens
MOST_SKIPPED = 0.05  # of steps after the fp16 scaler's first search
SEARCH = 16  # steps in which a scaler that begins at 65536 may halve itself down to 1
PERMUTATIONS = 1000
UNLIKELY = 0.01
WARMUP = 0.1


@dataclass(frozen=True)
class Finding:
    """What a check found, in words and in numbers."""

    check: str
    verdict: Literal["good", "look", "wrong", "left out"]
    words: str
    numbers: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return the finding as JSON holds it."""
        return asdict(self)


def short(optim: OptimConfig, lr: float, steps: int) -> OptimConfig:
    """Return the optimiser of a short training whose rate rises to `lr` and goes back to 0."""
    known = {"lr": lr, "min_lr": 0.0, "scale_lr": False, "warmup_steps": int(WARMUP * steps)}
    return optim.model_copy(update=known)


def short_loop(loop: LoopConfig, steps: int, batch_size: int) -> LoopConfig:
    """Return the loop of a short training without a moving average."""
    return loop.model_copy(update={"steps": steps, "batch_size": batch_size, "accumulate": 1, "ema_decay": None})


def train_briefly(
    task: nn.Module, batches: Iterable[Batch], loop: LoopConfig, optim: OptimConfig, done: Callable[[int], bool]
) -> list[dict[str, float]]:
    """Train to the last step of `loop`, or until `done(step)`; return the records. Raises NonFiniteError."""
    records = []
    for record in train(task, start(task, loop, optim), batches, loop, optim, num_clips=loop.batch_size):
        records.append(record)
        if done(int(record["step"])):
            break
    return records


def by_heart(found: pa.Table, truth: pa.Table, learned: Collection[str]) -> tuple[bool, str, dict[str, float]]:
    """Say whether predictions (`predict.predict`'s) are the truth of the same clips: all classes, surely, and gaze."""
    told, good = {}, []
    label = np.array([-1 if value is None else value for value in truth["label"].to_pylist()])
    if "label" in learned and (known := label >= 0).any():
        probabilities = matrix(found["probabilities"])[known]
        told["accuracy"] = float((probabilities.argmax(1) == label[known]).mean())
        likely = probabilities[np.arange(known.sum()), label[known]]
        told["cross_entropy"] = float(-np.log(np.maximum(likely, 1e-12)).mean())
        good.append(told["accuracy"] == 1 and told["cross_entropy"] < BY_HEART * math.log(probabilities.shape[1]))
    gaze = columns(truth, "pitch", "yaw")
    if "gaze" in learned and (known := ~np.isnan(gaze).any(1)).any():
        told["error_deg"] = float(angular_error(gaze[known], columns(found, "pred_pitch", "pred_yaw")[known]).mean())
        told["constant_deg"] = constant_error(gaze[known], gaze[known])
        good.append(told["error_deg"] < max(BY_HEART * told["constant_deg"], LEAST_DEG))
    words = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in told.items())
    return bool(good) and all(good), words, told


def constant_error(truth_rad: np.ndarray, known_rad: np.ndarray) -> float:
    """Return the error in degrees of always answering the mean direction of `known_rad` (n, 2), NaN where unknown."""
    known = known_rad[~np.isnan(known_rad).any(1)]
    mean = angles(directions(known).mean(0, keepdims=True))
    return float(angular_error(truth_rad, np.repeat(mean, len(truth_rad), 0)).mean())


def memorised(tried: Sequence[Mapping[str, Any]], clips: int) -> Finding:
    """Say whether `clips` clips were learned by heart, given what was tried: each has lr, learned, steps and words."""
    last = tried[-1]
    numbers = {"clips": clips, "tried": list(tried)}
    if last["learned"] and len(tried) == 1:
        words = f"{clips} clips are learned by heart in {last['steps']} steps at the run's rate {last['lr']:.3g}"
        return Finding("overfit", "good", f"{words}: {last['words']}", numbers)
    if last["learned"]:
        words = f"{clips} clips are learned by heart at rate {last['lr']:.3g} ({last['words']}), but not at the run's "
        words += f"{tried[0]['lr']:.3g} ({tried[0]['words']}): set optim.lr towards the former, or give it more steps "
        return Finding("overfit", "look", words + "(diagnose.overfit_steps)", numbers)
    words = "; ".join(f"at rate {one['lr']:.3g} {one['words']}" for one in tried)
    words = (
        f"{clips} clips are not learned by heart: {words}. Any model of use can do that: look at labels, pixels and "
    )
    words += "the loss; a large model from scratch may need more diagnose.overfit_steps"
    return Finding("overfit", "wrong", words, numbers)


def layer_norms(task: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the norms of gradient and weights of each layer: embedding, blocks, and what follows them by name."""
    plain: Any = task
    layers = plain.parameter_layers()
    sums: dict[str, list[float]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            gradient = 0.0 if parameter.grad is None else parameter.grad.float().square().sum().item()
            both = sums.setdefault(layer_name(name, layers[name], plain.num_layers), [0.0, 0.0])
            both[0] += gradient
            both[1] += parameter.detach().float().square().sum().item()
    return {name: (math.sqrt(one), math.sqrt(other)) for name, (one, other) in sums.items()}


def layer_name(parameter: str, layer: int, num_layers: int) -> str:
    """Return the name under which a parameter's layer is shown."""
    if layer == 0:
        return "embedding"
    if layer <= num_layers:
        return f"block {layer}"
    return parameter.removeprefix("backbone.encoder.").split(".")[0]


def without_gradient(task: nn.Module) -> set[str]:
    """Return the trained parameters on which the last step's loss did not depend at all."""
    trained = ((name, parameter.grad) for name, parameter in task.named_parameters() if parameter.requires_grad)
    return {name for name, gradient in trained if gradient is None or not gradient.any()}


def observe(
    task: nn.Module, batches: Iterable[Batch], loop: LoopConfig, optim: OptimConfig, *, num_clips: int, steps: int
) -> list[Finding]:
    """Take a run's own first steps and say what its gradients are, and how many steps the fp16 scaler left out."""
    records: list[dict[str, float]] = []
    norms: list[dict[str, tuple[float, float]]] = []
    idle: set[str] | None = None
    training = train(task, start(task, loop, optim), batches, loop, optim, num_clips=num_clips)
    try:
        for record in itertools.islice(training, steps):
            records.append(record)
            if "grad_norm" in record:
                norms.append(layer_norms(task))
                idle = without_gradient(task) if idle is None else idle & without_gradient(task)
    except NonFiniteError as error:
        words = f"step {len(records) + 1} of {steps} gave no number: {error}"
        return [Finding("gradients", "wrong", words, {"steps": len(records)})]
    return [gradients(norms, sorted(idle or ())), skipped(records, loop)]


def gradients(norms: Sequence[Mapping[str, tuple[float, float]]], idle: Sequence[str]) -> Finding:
    """Say how large each layer's gradient is, in the median over steps, and whether one does not learn."""
    if not norms:
        return Finding("gradients", "wrong", "no step had a finite gradient; set loop.precision to bf16 or fp32", {})
    table: list[dict[str, Any]] = [
        {
            "layer": name,
            "gradient": float(np.median([step[name][0] for step in norms])),
            "weights": norms[-1][name][1],
        }
        for name in norms[0]
    ]
    numbers: dict[str, Any] = {"layers": table, "without_gradient": list(idle)}
    blocks = {str(row["layer"]): float(row["gradient"]) for row in table if str(row["layer"]).startswith("block")}
    dead = [str(row["layer"]) for row in table if row["gradient"] == 0]
    if dead:
        return Finding(
            "gradients", "wrong", f"the loss does not depend on {', '.join(dead)}: nothing is learned there", numbers
        )
    last = list(blocks)[-1:]
    # A head that reads only messengers, or only patches, leaves a part of the last block idle: as published.
    early = [name for name in idle if not last or f".blocks.{int(last[0].split()[1]) - 1}." not in name]
    if early:
        more = f" and {len(early) - 6} more" if len(early) > 6 else ""
        words = f"the loss does not depend on {', '.join(early[:6])}{more}: these are never trained"
        return Finding("gradients", "look", words, numbers)
    numbers["spread"] = max(blocks.values()) / min(blocks.values()) if blocks else 1.0
    words = f"gradient norms of the blocks lie within a factor of {numbers['spread']:.3g}"
    if idle:
        words += (
            f"; {len(idle)} parameters of the last one are not trained, since the head does not read what they give"
        )
    if numbers["spread"] > SPREAD:
        words += f" ({min(blocks, key=lambda name: blocks[name])} is least): they vanish or explode on the way"
        return Finding("gradients", "look", words, numbers)
    return Finding("gradients", "good", words, numbers)


def skipped(records: Sequence[Mapping[str, float]], loop: LoopConfig) -> Finding:
    """Say which share of steps the fp16 scaler left out, and which share was clipped."""
    left_out = [int(record["skipped"]) for record in records]
    settled = max(len(left_out) - SEARCH, 0)
    late = left_out[-1] - left_out[SEARCH - 1] if settled else 0
    numbers: dict[str, Any] = {
        "steps": len(left_out),
        "skipped": left_out[-1],
        "skipped_ratio": left_out[-1] / len(left_out),
    }
    words = f"{left_out[-1]} of {len(left_out)} steps were left out for overflow"
    if loop.clip_grad is not None:
        clipped = sum(record.get("grad_norm", 0.0) > loop.clip_grad for record in records)
        numbers["clipped_ratio"] = clipped / len(left_out)
        words += f", {clipped} had their gradient clipped to loop.clip_grad={loop.clip_grad:g}"
    waited = sum(record["wait_seconds"] for record in records) / sum(record["seconds"] for record in records)
    numbers["waited_ratio"] = waited
    if loop.precision != "fp16":
        return Finding("skipped steps", "good", f"{words} ({loop.precision} needs no scaler)", numbers)
    if settled and late > MOST_SKIPPED * settled:
        words += f", {late} of them after the scaler's first {SEARCH}: set loop.precision=bf16 or lower optim.lr"
        return Finding("skipped steps", "wrong", words, numbers)
    if not settled and left_out[-1]:
        words += f", while the scaler looks for its scale; more diagnose.steps than {SEARCH} tell whether it finds one"
        return Finding("skipped steps", "look", words, numbers)
    return Finding("skipped steps", "good", words, numbers)


def by_chance(score: Callable[[np.ndarray], float], count: int, seed: int) -> tuple[float, float]:
    """Return `score(order)` at the order 0..count-1, and p: how often a permuted order scores as well, never 0."""
    rng = np.random.default_rng(seed)
    here = score(np.arange(count))
    return here, (1 + sum(score(rng.permutation(count)) >= here for _ in range(PERMUTATIONS))) / (1 + PERMUTATIONS)


def shuffled(
    name: str, chance: float, true: tuple[float, float], tried: Sequence[tuple[float, float]], unit: str = ""
) -> Finding:
    """Say whether validation stays at chance after learning shuffled labels; `true` and `tried` hold scores and ps.

    One shuffle can come near the truth by luck, where clips of a class look alike; that all do needs a leak.
    """
    numbers = {
        "score": name,
        "chance": chance,
        "true_labels": {"value": true[0], "p": true[1]},
        "shuffled": [{"value": score, "p": p} for score, p in tried],
    }
    told = ", ".join(f"{score:.3g}{unit} (p {p:.2g})" for score, p in tried)
    words = f"validation {name} after shuffled labels is {told}; chance is {chance:.3g}{unit}, and labels as they are "
    words += f"give {true[0]:.3g}{unit} (p {true[1]:.2g}) in as many steps"
    if all(p < UNLIKELY for _, p in tried):
        return Finding(
            "shuffled labels", "wrong", f"{words}. The labels reach the model by another way: audit.py", numbers
        )
    if true[1] >= UNLIKELY:
        words += ". That is no better than chance, so the check says little: give it more diagnose.shuffle_steps"
        return Finding("shuffled labels", "look", words, numbers)
    return Finding("shuffled labels", "good", words, numbers)
