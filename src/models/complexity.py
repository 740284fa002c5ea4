"""What a net costs, and what it sees."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def multiply_adds(net: nn.Module, image: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and fully connected layers for one image [C, H, W] ("FLOPs" in Table 1)."""
    net = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *image, device="meta"))
    return counter.get_total_flops() // 2


def activation_bytes(net: nn.Module, image: tuple[int, int, int]) -> int:
    """Bytes kept in fp32 from the forward pass to the backward pass of training, for each image [C, H, W] of a batch.

    What autograd keeps, the image itself among it: memory that layers share counts once, weights and the statistics
    of batch norm (all that is kept in one dimension) not at all, as a larger batch has no more of them.
    """
    net = copy.deepcopy(net).to("meta").train()
    kept: set[torch.UntypedStorage] = set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1:
            kept.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(torch.empty(1, *image, device="meta"))
    return sum(
        storage.nbytes()
        for storage in kept - {weight.untyped_storage() for weight in net.parameters()}
    )


def receptive_field(net: nn.Module) -> int:
    """Pixels a side of the image that one pixel of the last map depends on, the map that is averaged or goes to the fc.

    By kernels, strides and dilations on the longest way through convolutions and pools, which come in this order in
    all nets here; the projections and gates of shortcuts add nothing to it.
    """
    pixels = step = 1
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and "downsample" not in name:
            geometry = (layer.kernel_size, layer.stride, layer.dilation)
            kernel, stride, dilation = (x if isinstance(x, int) else x[0] for x in geometry)
            pixels += dilation * (kernel - 1) * step
            step *= stride
    return pixels
