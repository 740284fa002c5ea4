"""Nets without batch norm, or with group norm in its place: `model.norm=`."""

import math

from torch import nn

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
    # First the list: the net must not change while its modules are enumerated.
    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name, module in norms:
        parent, _, own_name = name.rpartition(".")
        setattr(net.get_submodule(parent), own_name, make_norm(norm, module.num_features))
    if norm == "none":
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels))
