"""Complexity of a net: parameters, multiply-adds, memory for activations, receptive field."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def weighted_layers(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that count for the depth, from images to scores, without projections."""
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: layer for name, layer in layers.items() if "downsample" not in name}


def count_parameters(net: nn.Module) -> int:
    """Count the learned numbers of a net, those of batch norm included."""
    return sum(p.numel() for p in net.parameters())


def count_multiply_adds(net: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Count the multiply-adds of one forward pass, which Table 1 calls "FLOPs".

    Only convolutions and fully connected layers count, as in the paper.

    Args:
        net: The net, on any device.
        image_shape: Channels, height and width of one image.

    Returns:
        Multiply-adds for one image.
    """
    # Tensors on the meta device have a shape but no memory and no arithmetic.
    # In training, batch norm would refuse a single image whose maps have one pixel.
    net = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *image_shape, device="meta"))
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two operations


def activation_bytes(net: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Compute the memory that training in fp32 needs for the activations of each image of a batch.

    This is everything that autograd keeps from the forward pass for the backward pass, the image
    included. Memory that layers share counts once.

    Args:
        net: The net, on any device.
        image_shape: Channels, height and width of one image.

    Returns:
        Bytes for one image.
    """
    # A copy: `to("meta")` would throw the weights away.
    net = copy.deepcopy(net).to("meta").train()
    weights = {weight.untyped_storage() for weight in net.parameters()}
    saved: set[torch.UntypedStorage] = set()

    def record(tensor: Tensor) -> Tensor:
        # One-dimensional tensors are batch norm statistics, which do not grow with the batch.
        if tensor.dim() > 1:
            saved.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        net(torch.empty(1, *image_shape, device="meta"))
    return sum(storage.nbytes() for storage in saved - weights)


def receptive_field(net: nn.Module) -> int:
    """Compute the receptive field of the last feature map, before average pooling or fc layers.

    It follows from kernels, strides and dilations along the longest path. In all nets here,
    `named_modules` lists the layers of that path in the order of the forward pass.

    Returns:
        Side length in pixels of the square of the image that one value of the map depends on.
    """
    size = total_stride = 1
    for name, layer in net.named_modules():
        # Projections and gates, below `downsample`, are 1x1 and in parallel with longer branches.
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and "downsample" not in name:
            geometry = (layer.kernel_size, layer.stride, layer.dilation)
            kernel, stride, dilation = (x if isinstance(x, int) else x[0] for x in geometry)
            # A step on this layer's input is `total_stride` pixels of the image.
            size += dilation * (kernel - 1) * total_stride
            total_stride *= stride
    return size
