"""What stands in for batch norm: none, group norm, or batch norm over fewer images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("batch", "none", "group")
GROUPS = 32  # of group norm at most (Wu and He 2018)


def make_norm(norm: str, channels: int) -> nn.Module:
    """Make a normalization of maps with so many channels.

    Args:
        norm: `batch`, `none` or `group`. Group norm has 32 groups, or fewer so that they divide
            the channels: with 16 channels it has one channel in each group.
        channels: Channels of the maps.

    Raises:
        ValueError: There is no such normalization.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm} is not one of {', '.join(NORMS)}")
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # The groups have to divide the channels, of which all nets here have a multiple of 2^k.
    return nn.Identity() if norm == "none" else nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def replace_batch_norm(net: nn.Module, norm: str) -> None:
    """Replace each batch norm of a net, in place.

    Without any normalization the convolutions get the biases that batch norm makes superfluous,
    with values that the caller has to initialize.

    Args:
        net: A net whose convolutions are each followed or preceded by a batch norm.
        norm: As for `make_norm`; with `batch` the net stays as it is.
    """
    _replace(net, lambda batch_norm: make_norm(norm, batch_norm.num_features))
    if norm == "none":
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels))


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over parts of a training batch, its "ghost batches" (Hoffer et al. 2017).

    It computes what as many processes with a part each compute: every part is normalized by its own
    mean and variance. The running statistics are those of the first part, as a checkpoint holds
    those of rank 0. In evaluation it is the usual batch norm.

    Args:
        channels: Channels of the maps.
        images: Images of each part.
    """

    def __init__(self, channels: int, images: int) -> None:
        super().__init__(channels)
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """Normalize maps [N, channels, H, W]."""
        if not self.training:
            return super().forward(x)
        first, *others = x.split(self.images)
        parts = [super().forward(first)]
        for part in others:
            # Without running statistics, as only the first part counts for them.
            parts.append(
                F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps)
            )
        return torch.cat(parts)


def limit_batch_norm_images(net: nn.Module, images: int, batch_size: int) -> None:
    """Make each batch norm of a net normalize over so many images of a training batch, in place.

    Args:
        net: A net with batch norm.
        images: Images of each part of a batch, in their order.
        batch_size: Images of a training batch of one process.

    Raises:
        ValueError: The parts are not equal, or the net has no batch norm.
    """

    def make_ghost(norm: nn.BatchNorm2d) -> nn.Module:
        ghost = GhostBatchNorm2d(norm.num_features, images)
        ghost.load_state_dict(norm.state_dict())  # not all start at one (zero_init_residual)
        return ghost

    if type(images) is not int or images < 1 or batch_size % images:
        raise ValueError(
            f"recipe.batch_norm_images={images} must be a number that divides the images of a "
            f"process, {batch_size}"
        )
    if not _replace(net, make_ghost):
        raise ValueError(f"recipe.batch_norm_images={images} needs a net with batch norm")


def _replace(net: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> int:
    """Replace each batch norm of a net, and return their number."""
    # First the list: the net must not change while its modules are enumerated.
    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name, norm in norms:
        parent, _, own_name = name.rpartition(".")
        setattr(net.get_submodule(parent), own_name, make(norm))
    return len(norms)
