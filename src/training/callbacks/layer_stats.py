"""What single layers do: how strongly they respond (Fig. 7), and the norm of their gradients (Sec. 4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn


def weighted_layers(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that count for the depth, by name, from the images to the scores; projections do not."""
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: layer for name, layer in layers.items() if "downsample" not in name}


def gradient_norms(net: nn.Module) -> dict[str, float]:
    """The L2 norm of the latest gradient of each layer's weights."""
    layers = weighted_layers(net)
    norms = torch.stack([layer.weight.grad.float().norm() for layer in layers.values()])
    return dict(zip(layers, norms.tolist(), strict=True))


def normed_layers(net: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norm that follows each 3x3 layer: `bn2` after `conv2`, as plain and residual nets have it."""
    return {
        name: norm
        for (name, layer), (norm_name, norm) in pairwise(net.named_modules())
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and isinstance(norm, nn.BatchNorm2d)
        if norm_name == name.replace("conv", "bn")
    }


@contextmanager
def record_responses(net: nn.Module) -> Iterator[dict[str, float]]:
    """Fills a dict with the standard deviation of each 3x3 layer's response to the batch that the net is given.

    The response is the output after batch norm, before ReLU and addition, over all images, channels and pixels.
    """
    deviations: dict[str, Tensor] = {}
    found: dict[str, float] = {}

    def measure(name: str, response: Tensor) -> None:
        deviations[name] = response.detach().float().std()

    hooks = [
        norm.register_forward_hook(lambda _, __, response, name=name: measure(name, response))
        for name, norm in normed_layers(net).items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if deviations:
        found.update(zip(deviations, torch.stack([*deviations.values()]).tolist(), strict=True))
