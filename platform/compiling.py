"""The blocks of a model compiled by `torch.compile`, where there is a compiler and where it is asked for.

Each block is compiled in place, so names of weights, checkpoints, averages and wrappers stay what they are, and blocks
that are alike share one graph: a whole model of 16 blocks took nine minutes to compile on a busy CPU, and saved 2 to
10 % of a step there. What is around the blocks, and the optimiser with its fused kernel, run as they
are. Compiled, numbers are rounded and drawn otherwise, so a run goes on as it began only if it is compiled again.
"""

import shutil
from typing import Any, Literal

from torch import nn
from torch.utils._triton import has_triton

Compile = Literal["off", "auto", "on"]
CPP_COMPILERS = ("g++", "clang++")
RECOMPILE_LIMIT = 64  # graphs of a block: one for each rate of stochastic depth, and for training, evaluation, sizes


def compile_blocks(task: nn.Module, wanted: Compile) -> str:
    """Compile the blocks of a task on its device, or leave them, and return in words what was chosen and why.

    `auto` compiles on CUDA alone; without a compiler nothing is compiled.
    """
    device = next(task.parameters()).device.type
    blocks = [block for part in task.modules() if hasattr(part, "recompute") for block in part.children()]
    reason = why_not(device, wanted) or ("" if blocks else f"{type(task).__name__} has none")
    if reason:
        return f"blocks run as they are: {reason}"
    for block in blocks:
        plain: Any = block
        plain.compile(recompile_limit=max(RECOMPILE_LIMIT, len(blocks)))
    return f"{len(blocks)} blocks are compiled on {device} when they first run, which takes minutes"


def why_not(device: str, wanted: Compile) -> str:
    """Say why blocks on a device are not compiled; nothing where they are."""
    if wanted == "off":
        return "loop.compile is off"
    if device == "cpu" and wanted == "auto":
        return "loop.compile=auto compiles on a GPU alone, because on a CPU it brings little"
    if device == "cpu" and not any(shutil.which(name) for name in CPP_COMPILERS):
        return f"there is no compiler ({' or '.join(CPP_COMPILERS)}) on this machine"
    if device == "cuda" and not has_triton():
        return "there is no Triton for this GPU"
    return ""
