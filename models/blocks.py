"""The blocks of an encoder or decoder, one after another, with or without keeping what each computes inside.

Training keeps every block's activations for the backward pass, most of a step's memory. With `recompute` only what goes
into a block is kept, and the block runs again when its gradients are due, with the same draws of stochastic depth: the
gradients are the same to the bit. The last block's are due at once, so it is never run twice. Source: Chen et al.,
Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Blocks(nn.ModuleList):
    """Blocks that each take what the one before gives: a tensor, or several."""

    recompute = False  # a training sets it, see LoopConfig.activation_checkpointing

    def forward(self, *values: Tensor) -> Any:
        """Run all blocks; the result is the last one's."""
        found: Any = values
        for index, block in enumerate(self):
            if self.recompute and torch.is_grad_enabled() and index < len(self) - 1:
                found = checkpoint(block, *values, use_reentrant=False)
            else:
                found = block(*values)
            values = found if isinstance(found, tuple) else (found,)
        return found
