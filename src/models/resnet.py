"""Plain and residual nets of He et al. 2015, for CIFAR-10 (Sec. 4.2) and for ImageNet (Table 1).

Both families are one class: a plain net is the same stack of layers with the shortcuts left out. Layers carry
torchvision's names, so that weights move between the two. Batch norm follows every convolution, before the
activation; there is no dropout (Sec. 3.4).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

BOTTLENECK_EXPANSION = 4


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution that keeps the size up to its stride; batch norm makes a bias pointless."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False
    )


class ZeroPadShortcut(nn.Module):
    """Option A where the size changes (Sec. 3.3): every `stride`-th pixel, zeros for the new channels.

    Half of the zero channels come before and half after. It has no parameters.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (0, 0, 0, 0, new_channels // 2, new_channels - new_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling over one pixel is x[:, :, ::stride, ::stride], whose gradient would come in another memory order
        # than channels-last and slow all that follows: 15% of a resnet20's step on a CPU.
        return F.pad(F.avg_pool2d(x, 1, self.stride), self.padding)


def make_shortcut(
    option: str | None, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """The shortcut of one block: option A, B or C (Sec. 3.3), or None in a plain net."""
    if option is None:
        return None
    unchanged = stride == 1 and in_channels == out_channels
    if option == "C" or (option == "B" and not unchanged):
        return nn.Sequential(
            conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
        )
    return nn.Identity() if unchanged else ZeroPadShortcut(out_channels - in_channels, stride)


class BasicBlock(nn.Module):
    """Two 3x3 layers, [N, in_channels, H, W] -> [N, width, H/stride, W/stride] (Fig. 5, left)."""

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, shortcut: str | None
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, width, 3, stride, dilation), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, 1, dilation), nn.BatchNorm2d(width)
        self.downsample = make_shortcut(shortcut, in_channels, width, stride)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            y = y + self.downsample(x)
        return F.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 layers, [N, in_channels, H, W] -> [N, 4 width, H/stride, W/stride] (Fig. 5, right).

    The stride is in the first 1x1 layer as in the paper's released nets, or in the 3x3 layer ("v1.5").
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
        self.conv1, self.bn1 = conv(in_channels, inner, 1, stride1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = (
            conv(inner, inner, 3, stride2, dilation, groups),
            nn.BatchNorm2d(inner),
        )
        self.conv3, self.bn3 = conv(inner, self.out_channels, 1), nn.BatchNorm2d(self.out_channels)
        self.downsample = make_shortcut(shortcut, in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            y = y + self.downsample(x)
        return F.relu(y)


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, keeping `x` alone for the backward pass, which then computes the block once more.

    The same gradients, at a third more arithmetic; batch norm counts its batch the first time only.
    """

    @contextmanager
    def second_time() -> Iterator[None]:
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, (momentum, batches) in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, batches

    contexts = nullcontext(), second_time()
    return checkpoint(
        block, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts
    )


class ResidualNet(nn.Module):
    """Images [N, 3, H, W] to class scores [N, num_classes]: a stem, stages of blocks, average pooling, one fc.

    Every stage after the first halves the size. `block(in_channels, width, stride, dilation)` makes one block.
    `caffe_pool` pools the stem's maps as Caffe does: with no padding, and a last window that may reach over the edge.
    `dilate` says for each stage whether to dilate its convolutions in place of its stride. With `activation_checkpointing` set, the
    activations inside a block are not kept for the backward pass but computed again (see `checkpointed`).
    """

    activation_checkpointing = False

    def __init__(
        self,
        block: Callable[[int, int, int, int], nn.Module],
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        init: str,
        imagenet_stem: bool = False,
        dilate: Sequence[bool] = (),
        caffe_pool: bool = False,
    ) -> None:
        super().__init__()
        channels, dilation = widths[0], 1
        self.conv1 = conv(3, channels, 7, 2) if imagenet_stem else conv(3, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        pool = nn.MaxPool2d(3, 2, ceil_mode=True) if caffe_pool else nn.MaxPool2d(3, 2, 1)
        self.maxpool = pool if imagenet_stem else nn.Identity()
        self.stages = [f"layer{i + 1}" for i in range(len(widths))]
        for i, name in enumerate(self.stages):
            stride, first_dilation = (1 if i == 0 else 2), dilation
            if i < len(dilate) and dilate[i]:
                stride, dilation = 1, dilation * stride
            stage = nn.Sequential()
            for j in range(blocks[i]):
                args = (stride, first_dilation) if j == 0 else (1, dilation)
                stage.append(block(channels, widths[i], *args))
                channels = stage[-1].out_channels
            self.add_module(name, stage)
        self.final = nn.Identity()  # a last norm and activation, where blocks end in the addition
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=init, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            for block in self.get_submodule(name):
                x = (
                    checkpointed(block, x)
                    if self.activation_checkpointing and self.training
                    else block(x)
                )
        return self.fc(self.final(x).mean((2, 3)))

    def compile(self, **options: object) -> None:
        """Compiles block by block: blocks of a stage share one graph, so deep nets take no longer than shallow ones."""
        for name in self.stages:
            for block in self.get_submodule(name):
                block.compile(**options)

    @property
    def depth(self) -> int:
        """Weighted layers on the way from image to scores; projections are not on it (Table 1)."""
        weighted = [
            name for name, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        return sum("downsample" not in name for name in weighted)


CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)
# Table 1: blocks per stage, and whether they are bottlenecks.
IMAGENET_NETS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def cifar_net(
    block: Callable[[int, int, int, int], nn.Module],
    n: float,
    num_classes: int,
    init: str,
    layers: int = 6,
) -> ResidualNet:
    """Three stages of n blocks for 32x32 images, `layers` n + 2 deep (Sec. 4.2).

    Raises ValueError if n is not 1, 2, 3, ...
    """
    if not isinstance(n, int | float) or n != int(n) or n < 1:
        below = max(1, int(n)) if isinstance(n, int | float) else 3
        neighbours = " and ".join(f"n={m} ({layers * m + 2} layers)" for m in (below, below + 1))
        raise ValueError(
            f"n={n} does not give a depth of {layers}n+2; the nearest nets are {neighbours}"
        )
    return ResidualNet(block, CIFAR_WIDTHS, [int(n)] * len(CIFAR_WIDTHS), num_classes, init)


def plain(n: int, num_classes: int, init: str) -> ResidualNet:
    """The plain net of 6n+2 layers for 32x32 images (Sec. 4.2). Raises ValueError if n is not 1, 2, 3, ..."""
    return cifar_net(partial(BasicBlock, shortcut=None), n, num_classes, init)


def resnet(n: int, shortcut: str, num_classes: int, init: str) -> ResidualNet:
    """The residual net of 6n+2 layers for 32x32 images, shortcuts A, B or C (Sec. 4.2). Raises ValueError."""
    return cifar_net(partial(BasicBlock, shortcut=checked(shortcut)), n, num_classes, init)


def plain_imagenet(depth: int, num_classes: int, init: str) -> ResidualNet:
    """The plain net of 18 or 34 layers for 224x224 images (Sec. 4.1). Raises ValueError for another depth."""
    blocks, bottleneck = IMAGENET_NETS.get(depth, ((), True))
    if bottleneck:
        raise ValueError(
            f"there is no plain net of {depth} layers for ImageNet: the paper has 18 and 34"
        )
    return ResidualNet(
        partial(BasicBlock, shortcut=None), IMAGENET_WIDTHS, blocks, num_classes, init, True
    )


def resnet_imagenet(
    depth: int,
    shortcut: str,
    stride_in_1x1: bool,
    groups: int,
    width_per_group: int,
    dilate: Sequence[bool],
    zero_init_residual: bool,
    num_classes: int,
    init: str,
    caffe_pool: bool = False,
) -> ResidualNet:
    """The residual net of 18, 34, 50, 101 or 152 layers for 224x224 images (Table 1), and its relatives.

    Args:
        shortcut: A, B or C (Sec. 3.3).
        stride_in_1x1: in a bottleneck, stride in the first 1x1 layer (the paper) or in the 3x3 (v1.5).
        groups, width_per_group: of the 3x3 layer of a bottleneck (ResNeXt, Wide ResNet).
        dilate: for each of the four stages, whether to dilate in place of striding.
        zero_init_residual: start with the last batch norm of each branch at zero, so each block is an identity.
        caffe_pool: see `ResidualNet`.

    Raises ValueError for a depth or shortcut that is not there, or groups where no bottleneck is.
    """
    if depth not in IMAGENET_NETS:
        raise ValueError(
            f"there is no net of {depth} layers in Table 1: it has {sorted(IMAGENET_NETS)}"
        )
    blocks, bottleneck = IMAGENET_NETS[depth]
    block = partial(BasicBlock, shortcut=checked(shortcut))
    if bottleneck:
        block = partial(
            Bottleneck,
            shortcut=checked(shortcut),
            stride_in_1x1=stride_in_1x1,
            groups=groups,
            width_per_group=width_per_group,
        )
    elif (groups, width_per_group) != (1, 64):
        raise ValueError(
            f"groups and width_per_group need bottleneck blocks; a {depth}-layer net has none"
        )
    net = ResidualNet(block, IMAGENET_WIDTHS, blocks, num_classes, init, True, dilate, caffe_pool)
    if zero_init_residual:
        for module in net.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(
                    (module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight
                )
    return net


def checked(shortcut: str) -> str:
    """The shortcut option as it is. Raises ValueError if it is not A, B or C."""
    if shortcut not in ("A", "B", "C"):
        hint = (
            f"; did you mean {shortcut.upper()}?"
            if str(shortcut).upper() in ("A", "B", "C")
            else ""
        )
        raise ValueError(f"shortcut {shortcut} is not one of A, B and C{hint}")
    return shortcut
