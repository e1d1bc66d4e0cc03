"""The selective scan against the loops that textbooks give for it, in one run: time, memory, length and exactness.

    python experiments/benchmarks/scan.py [--output FILE.json] [textbook=false] [key=value ...]

The loops hold exp(delta A) and delta B u for all steps, (b, d, n, l) numbers each, and leave the backward pass to
autograd. `textbook` takes a step out of them by slicing, whose gradient is as large as what is sliced: its time is
quadratic in the length, and it takes minutes. `unbound` takes all steps apart at once. Memory is the peak of a process
of its own beyond its inputs, in units of one (b, d, n, l) tensor. Errors are those of float32 against a float64 scan
one step after another, over long clips and small and large delta.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from mien.models.selective_scan import fused, selective_scan, sequential_scan
from mien.platform.config import dump, parse, run_program
from mien.platform.storage import write_whole

Scan = Callable[..., Tensor]


class ScanConfig(BaseModel, frozen=True, extra="forbid"):
    """What is measured, and how often."""

    batch_size: int = Field(2, description="clips", gt=0)
    inner: int = Field(1024, description="channels of the scan", gt=0)
    state: int = Field(16, description="numbers of state a channel", gt=0)
    length: int = Field(801, description="tokens", gt=0)
    rounds: int = Field(5, description="turns of each; the unbound loop and ours; medians are compared", gt=0)
    textbook: bool = Field(True, description="measure the loop that slices too, once; it takes minutes")
    lengths: tuple[int, ...] = Field((1024, 2048, 4096, 8192, 16384), description="tokens whose times are compared")
    lengths_inner: int = Field(256, description="channels at these lengths", gt=0)
    exact_length: int = Field(8192, description="tokens where errors are measured", gt=0)
    exact_inner: int = Field(64, description="channels where errors are measured", gt=0)
    deltas: tuple[float, ...] = Field((-6.0, -2.0, 2.0, 30.0), description="delta before softplus, for the errors")
    threads: int = Field(2, description="torch threads", gt=0)


def drawn(b: int, d: int, n: int, length: int, delta: float = -2.0, device: str = "cpu") -> list[Tensor]:
    """Return u, delta, A, B, C, D, z and delta_bias, which want gradients; A as Mamba begins with."""
    torch.manual_seed(0)
    shapes = ((b, d, length), (b, d, length), (b, n, length), (b, n, length), (d,), (b, d, length), (d,))
    u, dt, B, C, D, z, bias = (torch.randn(shape, device=device) for shape in shapes)
    A = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
    return [x.requires_grad_() for x in (u, dt / 2 + delta, A, B, C, D, z, bias / 10)]


def loop(unbound: bool) -> Scan:
    """Return the textbook's scan, which slices, or the same over steps taken apart once."""

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        dt = F.softplus(delta + bias[:, None])
        decay = torch.exp(torch.einsum("bdl,dn->bdnl", dt, A))
        added = torch.einsum("bdl,bnl->bdnl", dt * u, B)
        steps = range(u.shape[2])
        if unbound:
            decays, adds, reads = decay.unbind(3), added.unbind(3), C.unbind(2)
        state = torch.zeros_like(decay[..., 0])
        rows = []
        for t in steps:
            if unbound:
                state = decays[t] * state + adds[t]
                rows.append(torch.einsum("bdn,bn->bd", state, reads[t]))
            else:
                state = decay[..., t] * state + added[..., t]
                rows.append(torch.einsum("bdn,bn->bd", state, C[..., t]))
        return (torch.stack(rows, dim=2) + D[:, None] * u) * F.silu(z)

    return scan


def ours(*values: Tensor) -> Tensor:
    """Scan as the models do."""
    scan: Any = selective_scan
    y: Tensor = scan(*values, delta_softplus=True)
    return y


def seconds(scan: Scan, values: Sequence[Tensor]) -> float:
    """Return how long forward and backward take."""
    cuda = values[0].is_cuda
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    y = scan(*values)
    torch.autograd.grad(y, list(values), torch.ones_like(y))
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_bytes(config: ScanConfig) -> int:
    """Return what forward and backward add to this process's memory at most; to be run in a process of its own."""
    torch.set_num_threads(config.threads)
    seconds(ours, drawn(1, 8, config.state, 8))  # what is loaded once is not counted
    values = drawn(config.batch_size, config.inner, config.state, config.length)

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
    before = resident("VmRSS")
    seconds(ours, values)
    return resident("VmHWM") - before


def exactness(config: ScanConfig) -> dict[str, float]:
    """Return the largest relative error (of norms) of outputs and of any gradient, over all deltas."""
    worst = {"output": 0.0, "gradient": 0.0}
    for delta in config.deltas:
        single = drawn(1, config.exact_inner, config.state, config.exact_length, delta)
        double = [x.detach().double().requires_grad_() for x in single]
        sequential: Any = sequential_scan
        y, true = ours(*single), sequential(*double, delta_softplus=True)
        weight = torch.randn_like(y)
        grads = zip(
            torch.autograd.grad((y * weight).sum(), single),
            torch.autograd.grad((true * weight.double()).sum(), double),
            strict=True,
        )
        worst["output"] = max(worst["output"], relative(y, true))
        worst["gradient"] = max(worst["gradient"], *(relative(one, other) for one, other in grads))
    return worst


def relative(found: Tensor, true: Tensor) -> float:
    """Return the error in units of what is true."""
    return ((found.double() - true).norm() / true.norm()).item()


def measure(config: ScanConfig) -> dict[str, Any]:
    """Return all figures."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = drawn(config.batch_size, config.inner, config.state, config.length, device=device)
    scans = {"ours": ours, "unbound": loop(unbound=True)}
    times: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(config.rounds + 1):
        for name, scan in scans.items():
            times[name].append(seconds(scan, values))
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    if config.textbook:
        medians["textbook"] = seconds(loop(unbound=False), values)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "kernel": "mamba-ssm" if device == "cuda" and fused() is not None else "plain PyTorch",
        **{f"{name}_seconds": median for name, median in medians.items()},
        **{f"{name}_over_ours": median / medians["ours"] for name, median in medians.items() if name != "ours"},
    }
    if device == "cpu":
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peak = pool.submit(peak_bytes, config).result()
        whole = 4 * config.batch_size * config.inner * config.state * config.length
        result |= {"peak_mib": peak / 2**20, "states_mib": whole / 2**20, "peak_over_states": peak / whole}
    each = {}
    for length in config.lengths:
        long = drawn(1, config.lengths_inner, config.state, length, device=device)
        each[length] = min(seconds(ours, long) for _ in range(3)) / length * 1e6
    result |= {"microseconds_a_step": each, "slowest_over_fastest_length": max(each.values()) / min(each.values())}
    return result | {f"worst_{name}_error": error for name, error in exactness(config).items()}


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(ScanConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    torch.set_num_threads(call.config.threads)
    result = measure(call.config)
    print(json.dumps(result, indent=1))
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(call.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
