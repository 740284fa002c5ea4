"""Activation checkpointing that is safe for batch norm: less memory for more arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed_forward(module: nn.Module, x: Tensor) -> Tensor:
    """Run `module(x)` and keep only `x` for the backward pass, which repeats the forward pass.

    `torch.utils.checkpoint` alone is not enough: in the second forward pass every batch norm would
    update its running statistics again with the same batch. Here only the first pass updates them,
    so gradients and statistics are bitwise identical to those of `module(x)`. A training step
    costs about a third more arithmetic.

    Args:
        module: One part of a net, such as a residual block, in training mode. It must draw no
            random numbers (no dropout), as their state is not restored for the second pass.
        x: Its input.

    Returns:
        Its output.
    """
    contexts = nullcontext(), _frozen_running_statistics(module)
    return checkpoint(
        module, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts
    )


@contextmanager
def _frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    # SyncBatchNorm, which Lightning puts in for trainer.sync_batchnorm, is not a BatchNorm2d.
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]

    for norm in norms:
        # Momentum 0 gives the new batch no weight; the batches are counted on a tensor that is
        # thrown away. (track_running_stats=False would not do: autograd would then save fewer
        # tensors than in the first pass, which `checkpoint` refuses.)
        norm.momentum, norm.num_batches_tracked = 0.0, torch.tensor(0)
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
