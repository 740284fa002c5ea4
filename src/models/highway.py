"""Highway nets (Srivastava et al. 2015) for a comparison with the residual nets of Sec. 4.2.

The nets of the highway paper differ from residual nets in depth, widths and blocks. These differ
only by a gate in place of the addition: the "exclusive gating" of He et al. 2016 (Identity Mappings
in Deep Residual Networks, Sec. 3.1).
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.blocks import BasicBlock, validate_shortcut
from src.models.resnet import ResidualNet, cifar_net


class GatedShortcut(nn.Module):
    """T H + (1 - T) shortcut(x), of a block's input x and its branch H, with a gate T.

    The gate T = sigmoid(1x1 convolution of x) has a value for each channel and pixel.

    Args:
        shortcut: The shortcut without the gate.
        in_channels: Channels of x.
        out_channels: Channels of H.
        stride: Of the shortcut.
        transform_bias: Initial bias of the gate. With a low one T starts near zero, so that the
            block starts near its shortcut.
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
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, transform_bias)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Mix the shortcut of `x` and the branch, both [N, out_channels, H/stride, W/stride]."""
        return torch.lerp(self.shortcut(x), branch, self.gate(x).sigmoid())


class HighwayBlock(BasicBlock):
    """A basic block with a gate instead of the addition.

    Its last ReLU still follows, so H ends in batch norm; in the highway paper it ends in the
    activation.
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
        # Below `downsample`, as projections: `depth` and `receptive_field` leave those out.
        assert self.downsample is not None
        self.downsample: GatedShortcut = GatedShortcut(
            self.downsample, in_channels, width, stride, transform_bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        return F.relu(self.downsample(x, self.branch(x)))


def highway(
    n: int, shortcut: str, transform_bias: float, num_classes: int, init: str
) -> ResidualNet:
    """Make the highway net of 6n+2 layers for 32x32 images, `resnet(n, shortcut, ...)` with gates.

    Raises:
        ValueError: `n` is not 1, 2, 3, ..., `shortcut` not A, B or C, or the bias above 0.
    """
    validate_shortcut(shortcut)
    # Not `transform_bias > 0`, which would let NaN through.
    if not transform_bias <= 0:
        raise ValueError(
            f"transform_bias={transform_bias} must be 0 or less: "
            "the blocks of a highway net start near their shortcuts"
        )
    make_block = partial(HighwayBlock, shortcut=shortcut, transform_bias=transform_bias)
    return cifar_net(make_block, n, num_classes, init)
