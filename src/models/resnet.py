"""The plain and residual nets of He et al. 2015, for CIFAR-10 (Sec. 4.2) and ImageNet (Table 1)."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from src.models.blocks import BasicBlock, Bottleneck, PlainBlock
from src.models.residual_net import BlockFactory, ResidualNet

CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)
# Table 1: blocks per stage. Blocks are basic up to 34 layers and bottlenecks from 50 on.
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def cifar_net(
    make_block: BlockFactory,
    n: float,
    num_classes: int,
    init: str,
    norm: str,
    dilate: Sequence[bool] = (),
    layers_per_n: int = 6,
) -> ResidualNet:
    """Make a net of three stages of n blocks for 32x32 images (Sec. 4.2).

    Its depth is 6n+2 with basic blocks (two layers each, `layers_per_n` = 6) and 9n+2 with
    bottlenecks (three layers each, `layers_per_n` = 9). `dilate` is as in `ResidualNet`.

    Raises:
        ValueError: `n` is not 1, 2, 3, ...
    """
    if not isinstance(n, int | float) or n != int(n) or n < 1:
        below = max(1, int(n)) if isinstance(n, int | float) else 3
        nearest = [f"n={m} ({layers_per_n * m + 2} layers)" for m in (below, below + 1)]
        raise ValueError(
            f"n={n} does not give a depth of {layers_per_n}n+2; "
            f"the nearest nets are {' and '.join(nearest)}"
        )
    blocks = [int(n)] * 3
    return ResidualNet(
        make_block, CIFAR_WIDTHS, blocks, num_classes, init, dilate=dilate, norm=norm
    )


def imagenet_net(
    make_block: BlockFactory,
    depth: int,
    num_classes: int,
    init: str,
    norm: str,
    dilate: Sequence[bool] = (),
) -> ResidualNet:
    """Make a net of the four stages of Table 1 for 224x224 images."""
    blocks = IMAGENET_BLOCKS[depth]
    return ResidualNet(make_block, IMAGENET_WIDTHS, blocks, num_classes, init, True, dilate, norm)


def plain(
    n: int, num_classes: int, init: str, norm: str = "batch", dilate: Sequence[bool] = ()
) -> ResidualNet:
    """Make the plain net of 6n+2 layers for 32x32 images (Sec. 4.2)."""
    return cifar_net(PlainBlock, n, num_classes, init, norm, dilate)


def resnet(
    n: int,
    shortcut: str,
    num_classes: int,
    init: str,
    norm: str = "batch",
    dilate: Sequence[bool] = (),
) -> ResidualNet:
    """Make the residual net of 6n+2 layers for 32x32 images (Sec. 4.2)."""
    make_block = partial(BasicBlock, shortcut=shortcut)
    return cifar_net(make_block, n, num_classes, init, norm, dilate)


def plain_imagenet(
    depth: int, num_classes: int, init: str, norm: str = "batch", dilate: Sequence[bool] = ()
) -> ResidualNet:
    """Make the plain net of 18 or 34 layers for 224x224 images (Sec. 4.1)."""
    if depth not in (18, 34):
        raise ValueError(
            f"there is no plain net of {depth} layers for ImageNet: the paper has 18 and 34"
        )
    return imagenet_net(PlainBlock, depth, num_classes, init, norm, dilate)


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
    norm: str = "batch",
) -> ResidualNet:
    """Make a residual net of Table 1 for 224x224 images, a ResNeXt or a Wide ResNet.

    Args:
        depth: 18, 34, 50, 101 or 152.
        shortcut: A, B or C.
        stride_in_1x1: Whether a bottleneck strides in its first 1x1 layer, as in the paper's
            released nets, or in its 3x3 layer ("v1.5").
        groups: Of the 3x3 layer of a bottleneck (ResNeXt).
        width_per_group: Of the same layer in the first stage; 64 in the paper.
        dilate: For each of the four stages, whether to dilate instead of striding.
        zero_init_residual: Whether to start the last batch norm of each block at weight zero, so
            that the block starts as the identity.
        num_classes: Number of class scores.
        init: Initialization of the convolutions, see `initialize`.
        caffe_pool: Whether to pool the stem as the released Caffe nets do: without padding, but
            with a last window that may reach over the edge.
        norm: `batch`, `none` or `group`, see `make_norm`.

    Raises:
        ValueError: No such depth, shortcut, `init` or `norm`, `groups` in a net without
            bottlenecks, or `zero_init_residual` in a net without normalization.
    """
    if depth not in IMAGENET_BLOCKS:
        raise ValueError(
            f"there is no net of {depth} layers in Table 1: it has {sorted(IMAGENET_BLOCKS)}"
        )
    # 34 and 50 layers have equally many blocks in Table 1; only the kind of block differs.
    make_block: BlockFactory
    if depth >= 50:
        make_block = partial(
            Bottleneck,
            shortcut=shortcut,
            stride_in_1x1=stride_in_1x1,
            groups=groups,
            width_per_group=width_per_group,
        )
    elif (groups, width_per_group) == (1, 64):
        make_block = partial(BasicBlock, shortcut=shortcut)
    else:
        raise ValueError(
            f"groups and width_per_group need bottleneck blocks; a {depth}-layer net has none"
        )
    if zero_init_residual and norm == "none":
        raise ValueError("zero_init_residual=true needs a normalization; norm=none has none")
    net = imagenet_net(make_block, depth, num_classes, init, norm, dilate)
    if caffe_pool:
        net.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    if zero_init_residual:
        for block in net.blocks():
            last_norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last_norm.weight)
    return net
