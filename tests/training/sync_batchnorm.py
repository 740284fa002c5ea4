"""Batch norm over the batch of all devices together, on CPUs too, where PyTorch's own SyncBatchNorm does not run."""

import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm of [N, C, H, W] that takes its mean and variance over all processes, each with as many images."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world = torch.distributed.get_world_size()
        mean = all_reduce(x.float().mean((0, 2, 3))) / world
        centered = x.float() - mean[:, None, None]
        variance = all_reduce(centered.square().mean((0, 2, 3))) / world
        with torch.no_grad():
            values = world * x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            share = (
                1 / self.num_batches_tracked if self.momentum is None else self.momentum
            )  # None: a plain average
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * values / (values - 1), share)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's own on GPUs; on CPUs the batch norms of a net become `SyncedBatchNorm`s while it trains."""

    def apply(self, model: nn.Module) -> nn.Module:
        return (
            super().apply(model)
            if _on_gpu(model)
            else _turn(model, nn.BatchNorm2d, SyncedBatchNorm)
        )

    def revert(self, model: nn.Module) -> nn.Module:
        return (
            super().revert(model)
            if _on_gpu(model)
            else _turn(model, SyncedBatchNorm, nn.BatchNorm2d)
        )


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _turn(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
    return model
