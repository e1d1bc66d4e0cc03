"""AdamW as the published system uses it: parameter groups by depth and by kind, and schedules that are pure functions.

A group holds the parameters of one (learning-rate scale, decayed or not). With layer decay the scale of layer i of L
is `layer_decay ** (L + 1 - i)`, where 0 is the tube embedding, i the i-th block and L + 1 everything after them.
Schedules depend on the step alone, so nothing about them needs saving. Source: MAE-DFER's optimisation (MAE and BEiT
before it): warm-up from 0 with both ends included, then a cosine; rates are per 256 clips of global batch.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import nn

LEAST_NORM = 1e-3  # of a unit's weights, where its gradient is clipped by their share
SMALL_BATCH = 64  # clips; below it the linear rule leaves Adam less than half of the square root's rate


class OptimConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW, its schedules and its parameter groups."""

    lr: float = Field(1e-3, description="peak learning rate at a global batch of 256 clips (see scale_lr)", gt=0)
    min_lr: float = Field(1e-6, description="learning rate at the end of the cosine, at 256 clips", ge=0)
    scale_lr: bool = Field(True, description="multiply lr and min_lr by the global batch / 256; false takes them as is")
    warmup_epochs: float = Field(5, description="epochs of linear warm-up from 0 to lr", ge=0)
    warmup_steps: int | None = Field(None, description="steps of warm-up, in place of warmup_epochs", ge=0)
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay of the two moments")
    eps: float = Field(1e-8, description="AdamW's term against division by 0", gt=0)
    weight_decay: float = Field(0.05, description="decoupled weight decay of the decayed groups", ge=0)
    weight_decay_end: float | None = Field(None, description="weight decay at the last step, by a cosine; null: same")
    layer_decay: float = Field(1.0, description="factor on lr from one layer down to the next; 1 is off", gt=0, le=1)
    decay_anyway: tuple[str, ...] = Field(
        (),
        description="last part of parameter names decayed though the task exempts them (published pretraining: "
        "region_tokens); what another encoder alone has may stand here, and changes nothing",
    )


def groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    layers: Mapping[str, int],
    num_layers: int,
    undecayed: Collection[str],
    config: OptimConfig,
) -> list[dict[str, Any]]:
    """Sort trainable parameters into AdamW's groups, each with its `scale` of the learning rate and `weight_decay`.

    Not decayed: 1-D parameters, biases and those in `undecayed`. `layers` gives each name its layer, 0 to
    num_layers + 1.
    """
    found: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        last = name.rpartition(".")[2]
        exempt = name in undecayed and last not in config.decay_anyway
        decayed = not (exempt or parameter.ndim == 1 or last == "bias")
        if parameter.requires_grad:
            scale = config.layer_decay ** (num_layers + 1 - layers[name])
            group = {"params": [], "scale": scale, "weight_decay": config.weight_decay if decayed else 0.0}
            found.setdefault((scale, decayed), group)["params"].append((name, parameter))
    return list(found.values())


def told_decay(task: nn.Module, config: OptimConfig) -> str:
    """Return in words what `decay_anyway` does to a task: nothing to what another encoder alone has, as recipes may.

    Raises ValueError, with the nearest name, for what no task exempts.
    """
    if not config.decay_anyway:
        return ""
    plain: Any = task
    exempted: set[str] = plain.undecayed()
    here = {name.rpartition(".")[2] for name, weight in task.named_parameters() if weight.ndim > 1 and name in exempted}
    known = sorted(here | {*getattr(task, "exempt", ())})
    for name in config.decay_anyway:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else "vectors are never decayed, and all else is anyway"
            raise ValueError(f"optim.decay_anyway may name what tasks exempt, {known}, but got {name!r}; {hint}")
    also, absent = (", ".join(x for x in config.decay_anyway if (x in here) == there) for there in (True, False))
    told = [f"also on {also}"] if also else []
    return "; ".join([*told, f"not on {absent}, of which this model has none"] if absent else told)


def build(task: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Make AdamW for a task that says `parameter_layers()`, `num_layers` and `undecayed()`.

    The fused kernel: three times as fast as the others on a CPU, and as deterministic.
    """
    plain: Any = task
    told_decay(task, config)
    sorted_groups = groups(
        task.named_parameters(), plain.parameter_layers(), plain.num_layers, plain.undecayed(), config
    )
    return torch.optim.AdamW(sorted_groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def peak_rate(config: OptimConfig, batch_size: int) -> float:
    """Return the largest learning rate of a run whose steps take `batch_size` clips over all workers."""
    return config.lr * (batch_size / 256 if config.scale_lr else 1.0)


def told_rate(config: OptimConfig, batch_size: int) -> str:
    """Return the peak learning rate in words: the rule it follows, and what the rule does not look at.

    A small batch is told so, because the rule, linear in the batch, is SGD's: for Adam the square root of the batch
    follows the noise of its gradients (Malladi et al., arXiv:2205.10287), and 1/16 of 256 already differs by 4.
    """
    peak = peak_rate(config, batch_size)
    if not config.scale_lr:
        return f"learning rate {peak:.4g} at the peak, as optim.lr says: the batch of {batch_size} does not change it"
    words = f"learning rate {peak:.4g} at the peak: optim.lr {config.lr:g} x {batch_size} clips a step / 256; "
    words += "loop.accumulate, the number of workers and data.sampling.num_samples do not change it"
    if batch_size < SMALL_BATCH:
        root = config.lr * math.sqrt(batch_size / 256)
        words += f". The batch is small: the square root's rule would give {root:.3g} (optim.scale_lr=false optim.lr=…)"
    return words


def lr_at(step: int, total_steps: int, steps_per_epoch: int, config: OptimConfig, batch_size: int) -> float:
    """Return the learning rate of a step counted from 0, for groups of scale 1; past the last step, the last one's.

    Raises ValueError when the warm-up leaves no step for the cosine.
    """
    warm = config.warmup_steps
    if warm is None:
        warm = int(config.warmup_epochs * steps_per_epoch)
    if warm >= total_steps:
        raise ValueError(
            f"the warm-up must be shorter than the run, but it has {warm} of {total_steps} steps; "
            "lower warmup_epochs (or warmup_steps) or train longer"
        )
    factor = batch_size / 256 if config.scale_lr else 1.0
    if step < warm:
        return config.lr * factor * step / max(warm - 1, 1)
    return cosine(config.lr * factor, config.min_lr * factor, step - warm, total_steps - warm)


def weight_decay_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """Return the weight decay of a step counted from 0, for the groups that are decayed."""
    if config.weight_decay_end is None:
        return config.weight_decay
    return cosine(config.weight_decay, config.weight_decay_end, step, total_steps)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Return point `step` of the `steps` points of half a cosine that leaves `start` towards `end`."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(step, steps - 1) / steps))


def set_rates(optimiser: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Give every group its share of the learning rate, and the decayed ones the weight decay."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]
        if group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_by_share(parameters: Iterable[nn.Parameter], share: float) -> None:
    """Shrink, in place, the gradient of each unit (row of a matrix, whole vector) to a share of its weights' norm.

    Adaptive gradient clipping (Brock et al., arXiv:2102.06171); weights count for at least LEAST_NORM, or what begins
    at zero would never leave it. Heads are clipped too, unlike there: AdamW evens out what is always shrunk alike.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            inside = tuple(range(1, parameter.ndim)) or None
            weights, gradient = (
                torch.linalg.vector_norm(x, dim=inside, keepdim=True) for x in (parameter, parameter.grad)
            )
            most = share * weights.clamp(min=LEAST_NORM)
            parameter.grad.mul_((most / gradient.clamp(min=1e-12)).clamp(max=1))
