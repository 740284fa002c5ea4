"""The optimizer of a recipe, and which parameters it decays."""

from collections.abc import Callable, Iterable
from typing import Any

from hydra.utils import instantiate
from torch import Tensor
from torch.optim import Optimizer


def optimizer_factory(recipe: dict[str, Any], clips: bool = False) -> Callable[..., Optimizer]:
    """Return a function that makes the optimizer from parameters and a first learning rate.

    Args:
        recipe: The recipe of a run.
        clips: Whether Lightning clips the gradients, which it refuses to do for a fused optimizer
            in mixed precision.
    """
    options = recipe["optimizer"]
    if clips and "fused" in options:
        options = options | {"fused": False}
    make: Callable[..., Optimizer] = instantiate(options)
    if recipe["decay_norm_and_bias"]:
        return make

    def make_with_groups(parameters: Iterable[Tensor], **options: Any) -> Optimizer:
        return make(weight_decay_groups(parameters), **options)

    return make_with_groups


def weight_decay_groups(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Divide parameters into those with the optimizer's weight decay and those without any.

    Weights of convolutions and fc layers are matrices or larger; biases, scales and shifts have one
    dimension.
    """
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
