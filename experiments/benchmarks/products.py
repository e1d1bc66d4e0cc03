"""The matrix products of a piece of work: their operations counted, and the same ones run again alone, back to back.

A large square product is not what a model asks for: its own are thin, some have transposed factors, and each writes to
memory that is not in a cache. How fast they run with nothing between them is the most that a step could reach as long
as it computes these products. Fused attention is counted with the operations, but not run again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)


def operations(work: Callable[[], object]) -> float:
    """Return the floating-point operations of a piece of work: products and attention, two a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


class Recorder(TorchDispatchMode):
    """Notes every product that runs inside it, with the shapes and strides of its factors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.factors: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in PRODUCTS:
            mine, named = tree_map_only(Tensor, self._like, (args, kwargs or {}))
            self.calls.append(lambda: func(*mine, **named))
        return func(*args, **(kwargs or {}))

    def _like(self, x: Tensor) -> Tensor:
        """Return a tensor of the same layout with other numbers; one for all products that take such a factor."""
        key = (x.dtype, x.device, x.shape, x.stride())
        if key not in self.factors:
            reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            numbers = torch.randn(reach, device=x.device, dtype=torch.float32).to(x.dtype)
            self.factors[key] = numbers.as_strided(x.shape, x.stride())
        return self.factors[key]


def alone(work: Callable[[], object]) -> Callable[[], None]:
    """Return a piece of work that is nothing but the products of another, in their order."""
    with Recorder() as recorder:
        work()

    def products() -> None:
        with torch.no_grad():
            for call in recorder.calls:
                call()

    return products
