"""Highway nets (Srivastava et al. 2015) as the residual nets of Sec. 4.2 with a gate in place of the addition.

Their own nets differ from residual ones in depth, widths and blocks as well. These differ by the gate alone, which is
the "exclusive gating" of He et al. 2016 (Identity Mappings, Sec. 3.1).
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.resnet import BasicBlock, ResidualNet, checked, cifar_net


class GatedShortcut(nn.Module):
    """H T + shortcut(x) (1 - T) of a block's input x and its branch H, with the gate T = sigmoid(1x1 conv of x).

    With a low `transform_bias` T starts near zero: the block carries x.
    """

    def __init__(
        self,
        shortcut: nn.Module,
        in_channels: int,
        out_channels: int,
        stride: int,
        transform_bias: float,
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.gate = nn.Conv2d(in_channels, out_channels, 1, stride)
        nn.init.constant_(self.gate.bias, transform_bias)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return torch.lerp(self.shortcut(x), branch, self.gate(x).sigmoid())


class HighwayBlock(BasicBlock):
    """A basic block with a gate where its addition was: the last ReLU still comes after.

    So H ends in batch norm, while in the highway paper it ends in the activation. The gate is part of the shortcut,
    and as little on the way from image to scores as a projection.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        shortcut: str,
        transform_bias: float,
    ) -> None:
        super().__init__(in_channels, width, stride, dilation, shortcut)
        self.downsample = GatedShortcut(self.downsample, in_channels, width, stride, transform_bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(self.downsample(x, y))


def highway(
    n: int, shortcut: str, transform_bias: float, num_classes: int, init: str
) -> ResidualNet:
    """The highway net of 6n+2 layers for 32x32 images, twin of `resnet(n, shortcut, ...)`.

    Raises ValueError if n is not 1, 2, 3, ..., the shortcut not A, B or C, or the bias above 0.
    """
    if not transform_bias <= 0:
        raise ValueError(
            f"transform_bias={transform_bias} must not be above 0: a highway net starts by carrying"
        )
    block = partial(HighwayBlock, shortcut=checked(shortcut), transform_bias=transform_bias)
    return cifar_net(block, n, num_classes, init)
