"""Pre-activation residual nets of He et al. 2016, Identity Mappings in Deep Residual Networks, for CIFAR-10.

Batch norm and ReLU come before each convolution, and nothing after an addition: from block to block, what one adds
reaches all later ones as it is. Two places are special (Appendix). The first activation of all stands right after
the net's first convolution, before the paths part, and one more follows the last addition. A shortcut that is not
the identity takes the activated input, as in the authors' released code.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.resnet import (
    BOTTLENECK_EXPANSION,
    ResidualNet,
    checked,
    cifar_net,
    conv,
    make_shortcut,
)


def shortcut_without_norm(
    option: str, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    """The shortcut of one block, A, B or C; a projection is followed by no batch norm, as nothing is here."""
    shortcut = make_shortcut(option, in_channels, out_channels, stride)
    return shortcut[0] if isinstance(shortcut, nn.Sequential) else shortcut


class PreactivationBlock(nn.Module):
    """Two 3x3 layers, [N, in_channels, H, W] -> [N, width, H/stride, W/stride] (Fig. 4e)."""

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str
    ) -> None:
        super().__init__()
        self.bn1, self.conv1 = (
            nn.BatchNorm2d(in_channels),
            conv(in_channels, width, 3, stride, dilation),
        )
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, 1, dilation)
        self.downsample = shortcut_without_norm(shortcut, in_channels, width, stride)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.bn2(y)))
        return y + shortcut


class PreactivationBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 layers, [N, in_channels, H, W] -> [N, 4 width, H/stride, W/stride].

    The stride is in the first 1x1 layer.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str
    ) -> None:
        super().__init__()
        self.out_channels = BOTTLENECK_EXPANSION * width
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), conv(in_channels, width, 1, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, 1, dilation)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), conv(width, self.out_channels, 1)
        self.downsample = shortcut_without_norm(shortcut, in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + shortcut


def with_first_and_last_activation(net: ResidualNet) -> ResidualNet:
    """The net with an activation after its last addition, and its first block without the one that conv1 has."""
    net.layer1[0].bn1 = nn.Identity()  # and the ReLU of a ReLU changes nothing
    net.final = nn.Sequential(nn.BatchNorm2d(net.fc.in_features), nn.ReLU())
    return net


def preactivation(n: int, shortcut: str, num_classes: int, init: str) -> ResidualNet:
    """The net of 6n+2 layers in blocks of two. Raises ValueError for another n than 1, 2, ..., or another shortcut."""
    block = partial(PreactivationBlock, shortcut=checked(shortcut))
    return with_first_and_last_activation(cifar_net(block, n, num_classes, init))


def preactivation_bottleneck(n: int, shortcut: str, num_classes: int, init: str) -> ResidualNet:
    """The net of 9n+2 layers in bottlenecks: 164 and 1001 in the paper (Table 4). Raises ValueError likewise."""
    block = partial(PreactivationBottleneck, shortcut=checked(shortcut))
    return with_first_and_last_activation(cifar_net(block, n, num_classes, init, layers=9))
