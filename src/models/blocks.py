"""The basic and the bottleneck block, and their shortcuts A, B and C (Sec. 3.3, Fig. 5)."""

from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK_EXPANSION = 4  # the last layer of a bottleneck is four times as wide as its first two


def conv3x3(
    in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Make a 3x3 convolution that keeps the size up to its stride; batch norm replaces its bias."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        3,
        stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


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
    option: str | None, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """Make the shortcut of one block: option A, B or C (Sec. 3.3), or None for a plain net."""
    if option is None:
        return None
    same_shape = stride == 1 and in_channels == out_channels
    if option == "C" or (option == "B" and not same_shape):
        projection = conv1x1(in_channels, out_channels, stride)
        return nn.Sequential(projection, nn.BatchNorm2d(out_channels))
    return nn.Identity() if same_shape else ZeroPadShortcut(out_channels - in_channels, stride)


def validate_shortcut(option: str) -> None:
    """Raise ValueError unless `option` is A, B or C."""
    if option not in ("A", "B", "C"):
        upper = str(option).upper()
        hint = f"; did you mean {upper}?" if upper in ("A", "B", "C") else ""
        raise ValueError(f"shortcut {option} is not one of A, B and C{hint}")


class BasicBlock(nn.Module):
    """Two 3x3 layers and a shortcut around them (Fig. 5, left).

    Maps [N, in_channels, H, W] to [N, width, H/stride, W/stride].

    Args:
        in_channels: Channels of the input.
        width: Channels of both layers.
        stride: Of the first layer and of the shortcut.
        dilation: Of both layers.
        shortcut: A, B or C, or None in a plain net.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str | None
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(shortcut, in_channels, width, stride)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        y = self.branch(x)
        if self.downsample is not None:
            y = y + self.downsample(x)
        return F.relu(y)

    def branch(self, x: Tensor) -> Tensor:
        """Compute the two layers, without the shortcut and the last ReLU."""
        y = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(y))


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
        shortcut: str | None,
        stride_in_1x1: bool,
        groups: int,
        width_per_group: int,
    ) -> None:
        super().__init__()
        self.out_channels = BOTTLENECK_EXPANSION * width
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
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            y = y + self.downsample(x)
        return F.relu(y)
