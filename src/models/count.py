"""What a net costs."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def multiply_adds(net: nn.Module, image: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and fully connected layers for one image [C, H, W] ("FLOPs" in Table 1)."""
    net = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *image, device="meta"))
    return counter.get_total_flops() // 2
