"""The plain, basic and bottleneck block, and the shortcuts A, B and C (Sec. 3.3, Fig. 5)."""

from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK_EXPANSION = 4  # the last layer of a bottleneck is four times as wide as its first two


def conv3x3(
    in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Make a 3x3 convolution that keeps the size up to its stride; batch norm replaces its bias."""
    # The padding is as wide as the dilation: that is how far the kernel reaches from its center.
    padding = dilation
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding, dilation, groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a 1x1 convolution; batch norm replaces its bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class ZeroPadShortcut(nn.Module):
    """Shortcut A where the shape changes (Sec. 3.3): subsampled pixels, zeros as the new channels.

    It has no parameters. Half of the new channels come before the old ones and half after: the
    paper does not say where, and the authors released no CIFAR-10 nets.

    Args:
        new_channels: How many channels to add.
        stride: Keep every `stride`-th pixel of every `stride`-th row.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (0, 0, 0, 0, new_channels // 2, new_channels - new_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut's part of the block's output."""
        # Average pooling over one pixel equals x[:, :, ::stride, ::stride], but its gradient stays
        # in channels-last memory order. Slicing would slow a ResNet-20 step on a CPU by 15%.
        return F.pad(F.avg_pool2d(x, 1, self.stride), self.padding)


def make_shortcut(
    option: str, in_channels: int, out_channels: int, stride: int, batch_norm: bool = True
) -> nn.Module:
    """Make the shortcut of one block (Sec. 3.3).

    Args:
        option: A pads with zeros where the shape changes, B projects there, C projects everywhere.
        in_channels: Channels of the block's input.
        out_channels: Channels of the block's output.
        stride: Stride of the block.
        batch_norm: Whether batch norm follows a projection.

    Raises:
        ValueError: If `option` is not A, B or C.
    """
    if option not in ("A", "B", "C"):
        upper = str(option).upper()
        hint = f"; did you mean {upper}?" if upper in ("A", "B", "C") else ""
        raise ValueError(f"shortcut {option} is not one of A, B and C{hint}")
    same_shape = stride == 1 and in_channels == out_channels
    if option == "C" or (option == "B" and not same_shape):
        projection = conv1x1(in_channels, out_channels, stride)
        return nn.Sequential(projection, nn.BatchNorm2d(out_channels)) if batch_norm else projection
    return nn.Identity() if same_shape else ZeroPadShortcut(out_channels - in_channels, stride)


class PlainBlock(nn.Module):
    """Two 3x3 layers, as in a plain net.

    Maps [N, in_channels, H, W] to [N, width, H/stride, W/stride].

    Args:
        in_channels: Channels of the input.
        width: Channels of both layers.
        stride: Of the first layer, and of a shortcut around both.
        dilation: Of both layers.
    """

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        return F.relu(self.branch(x))

    def branch(self, x: Tensor) -> Tensor:
        """Compute the two layers, without the last ReLU."""
        y = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(y))


class BasicBlock(PlainBlock):
    """Two 3x3 layers and a shortcut around them (Fig. 5, left).

    Arguments as in `PlainBlock`, and `shortcut`: A, B or C.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str
    ) -> None:
        super().__init__(in_channels, width, stride, dilation)
        # torchvision's name, although shortcut C also projects where nothing is downsampled.
        self.downsample = make_shortcut(shortcut, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        # The addition comes before the last ReLU (Fig. 2).
        return F.relu(self.branch(x) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 layers and a shortcut around them (Fig. 5, right).

    Maps [N, in_channels, H, W] to [N, 4 width, H/stride, W/stride]. Arguments as in `BasicBlock`,
    and those of `resnet_imagenet`.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        shortcut: str,
        stride_in_1x1: bool,
        groups: int,
        width_per_group: int,
    ) -> None:
        super().__init__()
        self.out_channels = BOTTLENECK_EXPANSION * width
        # Width per group counts for the first stage, of width 64, and grows with the stages.
        inner = width * width_per_group // 64 * groups
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)

        self.conv1 = conv1x1(in_channels, inner, stride1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride2, dilation, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, self.out_channels)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.downsample = make_shortcut(shortcut, in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))
