"""Pre-activation residual nets of He et al. 2016, for CIFAR-10.

From "Identity Mappings in Deep Residual Networks". Batch norm and ReLU come before each convolution
and nothing follows the addition, so that shortcuts carry a signal unchanged from block to block.
The ends of the net are special (Appendix of that paper): the first activation directly follows the
first convolution, before the first shortcut, and one more follows the last addition.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.blocks import BOTTLENECK_EXPANSION, conv1x1, conv3x3, make_shortcut
from src.models.normalization import make_norm
from src.models.residual_net import ResidualNet
from src.models.resnet import cifar_net


class PreActBlock(nn.Module):
    """Two 3x3 layers and a shortcut around them (Fig. 4e), arguments as in `BasicBlock`.

    Maps [N, in_channels, H, W] to [N, width, H/stride, W/stride].
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, dilation=dilation)
        self.downsample = make_shortcut(shortcut, in_channels, width, stride, batch_norm=False)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        y = F.relu(self.bn1(x))
        # As in the authors' code, a shortcut that is not the identity takes the activated input.
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.bn2(y)))
        # No ReLU after the addition, which would keep the signal from falling along the shortcuts.
        return y + shortcut


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 layers and a shortcut around them, arguments as in `BasicBlock`.

    Maps [N, in_channels, H, W] to [N, 4 width, H/stride, W/stride]. The first layer strides.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str
    ) -> None:
        super().__init__()
        self.out_channels = BOTTLENECK_EXPANSION * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, dilation=dilation)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.out_channels)
        self.downsample = make_shortcut(
            shortcut, in_channels, self.out_channels, stride, batch_norm=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        y = F.relu(self.bn1(x))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + shortcut


def preact_resnet(
    n: int,
    shortcut: str,
    num_classes: int,
    init: str,
    norm: str = "batch",
    dilate: Sequence[bool] = (),
) -> ResidualNet:
    """Make the pre-activation net of 6n+2 layers, with basic blocks and shortcuts A, B or C."""
    make_block = partial(PreActBlock, shortcut=shortcut)
    return _activate_ends(cifar_net(make_block, n, num_classes, init, norm, dilate), norm)


def preact_resnet_bottleneck(
    n: int,
    shortcut: str,
    num_classes: int,
    init: str,
    norm: str = "batch",
    dilate: Sequence[bool] = (),
) -> ResidualNet:
    """Make the pre-activation net of 9n+2 layers with bottlenecks: 164 and 1001 in Table 4."""
    make_block = partial(PreActBottleneck, shortcut=shortcut)
    net = cifar_net(make_block, n, num_classes, init, norm, dilate, layers_per_n=9)
    return _activate_ends(net, norm)


def _activate_ends(net: ResidualNet, norm: str) -> ResidualNet:
    # The net's own bn1 and ReLU follow its first convolution already. The first block's ReLU
    # remains, which changes nothing after another ReLU.
    net.blocks()[0].bn1 = nn.Identity()
    # Nothing else would normalize the sum of all blocks for the classifier.
    net.final = nn.Sequential(make_norm(norm, net.last_channels), nn.ReLU())
    return net
