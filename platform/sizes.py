"""What a config amounts to before anything starts: tokens, parameters, floating-point operations, clips and steps.

Operations are counted by PyTorch's FLOP counter on one real forward pass (attention included), two a multiply-add.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig, told_decay, told_rate


def sizes(
    task: nn.Module, clip: Tensor, num_tokens: int, num_clips: int, loop: LoopConfig, optim: OptimConfig
) -> dict[str, str]:
    """Return the sizes of training `task` on `num_clips` clips like `clip` (1, t, h, w, c), as text for a table."""
    batch: Mapping[str, Tensor] = {
        "clip": clip,
        "draw": torch.zeros(1, dtype=torch.int64),
        "label": torch.zeros(1, dtype=torch.int64),
        "gaze": torch.zeros(1, 2),
    }
    with FlopCounterMode(display=False) as counter:
        task.eval()(batch)
    steps = loop.total_steps(num_clips)
    parameters = list(task.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))
    decay = told_decay(task, optim)
    return {
        "clip": "x".join(map(str, clip.shape[1:4])) + " pixels",
        "tokens": f"{num_tokens:,} a clip",
        "parameters": f"{total:,}" + ("" if trained == total else f", of which {trained:,} are trained"),
        "forward pass": f"{counter.get_total_flops() / 1e9:,.2f} GFLOP a clip (two a multiply-add)",
        "training clips": f"{num_clips:,}",
        "batch": f"{loop.batch_size:,} clips",
        "rate": told_rate(optim, loop.batch_size),
        **({"weight decay": decay} if decay else {}),
        "steps": f"{steps:,} ({steps * loop.batch_size / num_clips:,.1f} epochs)",
    }
