"""Highway nets (Srivastava et al. 2015) for a comparison with the residual nets of Sec. 4.2.

The nets of the highway paper differ from residual nets in depth, widths and blocks. These differ
only by a gate in place of the addition: the "exclusive gating" of He et al. 2016 (Identity Mappings
in Deep Residual Networks, Sec. 3.1).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.blocks import PlainBlock, make_shortcut
from src.models.residual_net import ResidualNet
from src.models.resnet import cifar_net


class HighwayBlock(PlainBlock):
    """T H + (1 - T) shortcut(x), of the block's input x and its two layers H, with a gate T.

    The gate T = sigmoid(1x1 convolution of x) has a value for each channel and pixel. The last ReLU
    still follows, so H ends in batch norm; in the highway paper it ends in the activation.

    Args:
        in_channels: Channels of the input.
        width: Channels of both layers.
        stride: Of the first layer, the shortcut and the gate.
        dilation: Of both layers.
        shortcut: A, B or C.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str
    ) -> None:
        super().__init__(in_channels, width, stride, dilation)
        # Below `downsample`, as projections: `depth` and `receptive_field` leave those out.
        self.downsample = nn.ModuleDict(
            {
                "shortcut": make_shortcut(shortcut, in_channels, width, stride),
                "gate": nn.Conv2d(in_channels, width, 1, stride),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        branch = self.branch(x)
        shortcut = self.downsample["shortcut"](x)
        transform = self.downsample["gate"](x).sigmoid()
        # shortcut + T (branch - shortcut): the same mixture in one operation.
        return F.relu(torch.lerp(shortcut, branch, transform))


def highway(
    n: int,
    shortcut: str,
    transform_bias: float,
    num_classes: int,
    init: str,
    norm: str = "batch",
    dilate: Sequence[bool] = (),
) -> ResidualNet:
    """Make the highway net of 6n+2 layers for 32x32 images, `resnet(n, shortcut, ...)` with gates.

    Args:
        n: 1, 2, 3, ...
        shortcut: A, B or C.
        transform_bias: Initial bias of the gates. With a low one T starts near zero, so that the
            blocks start near their shortcuts.
        num_classes: Number of class scores.
        init: Initialization of the convolutions, those of the gates too; see `initialize`.
        norm: `batch`, `none` or `group`, see `make_norm`.
        dilate: For each of the three stages, whether to dilate instead of striding.

    Raises:
        ValueError: `n` is not 1, 2, 3, ..., `shortcut` not A, B or C, or the bias above 0.
    """
    # Not `transform_bias > 0`, which is false for NaN.
    if not transform_bias <= 0:
        raise ValueError(
            f"transform_bias={transform_bias} must be 0 or less: "
            "the blocks of a highway net start near their shortcuts"
        )
    make_block = partial(HighwayBlock, shortcut=shortcut)
    net = cifar_net(make_block, n, num_classes, init, norm, dilate)
    # Here, because the initialization of the convolutions sets their biases.
    for block in net.blocks():
        nn.init.constant_(block.get_parameter("downsample.gate.bias"), transform_bias)
    return net
