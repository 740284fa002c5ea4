"""Batch norm over the batch of all ranks on CPUs, where PyTorch's SyncBatchNorm does not run.

With it two ranks must train as one does, which shows that they share the rest of a run correctly.
"""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn


class AllReduce(torch.autograd.Function):
    """The sum of a tensor over all ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return AllReduce.apply(gradient)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm of [N, C, H, W] over the images of all ranks, each of which has as many."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world_size = distributed.get_world_size()
        mean = AllReduce.apply(x.float().mean((0, 2, 3))) / world_size
        centered = x.float() - mean[:, None, None]
        variance = AllReduce.apply(centered.square().mean((0, 2, 3))) / world_size

        with torch.no_grad():
            count = world_size * x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            # Without a momentum the running statistics are plain averages over all batches.
            weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * count / (count - 1), weight)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncBatchNorms(Callback):
    """Turn the batch norms of the net into `SyncedBatchNorm`s before it is trained."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for norm in module.net.modules():
            if type(norm) is nn.BatchNorm2d and trainer.world_size > 1:
                norm.__class__ = SyncedBatchNorm
