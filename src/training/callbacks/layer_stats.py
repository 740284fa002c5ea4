"""Measure single layers at each evaluation: responses (Fig. 7) and gradient norms (Sec. 4.1)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.models.complexity import weighted_layers
from src.runs.run_dir import RunDir
from src.tasks.classification import Classifier
from src.training.callbacks.base import RunCallback


class LayerStats(RunCallback):
    """Write layers.csv: a row for each layer at each evaluation."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.measuring = ExitStack()

    def on_validation_start(self, trainer: Trainer, module: Classifier) -> None:
        """Measure the gradients of the latest iteration, and start to measure responses."""
        self.gradients = gradient_norms(module.net)
        self.responses = self.measuring.enter_context(record_responses(module.net))

    def on_validation_batch_end(self, *_: object) -> None:
        """Stop after the first batch, which is enough."""
        self.measuring.close()

    def on_validation_end(self, trainer: Trainer, module: Classifier) -> None:
        """Write the rows."""
        self.measuring.close()  # there is no batch on a rank that could read none of its images
        if trainer.is_global_zero:
            self.run_dir.append_layers(trainer.global_step, self.gradients, self.responses)


def gradient_norms(net: nn.Module) -> dict[str, float]:
    """Return the L2 norm of the latest gradient of each layer's weights."""
    layers = weighted_layers(net)
    # Stacked, so that the device is waited for once and not once per layer.
    gradients = (layer.weight.grad for layer in layers.values())
    norms = torch.stack([g.float().norm() for g in gradients if g is not None])
    return dict(zip(layers, norms.tolist(), strict=True))


def responding_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return, for each 3x3 layer, the module whose output is its response.

    That is the layer's batch norm, as `bn2` is that of `conv2`. In a block with pre-activation, the
    batch norm before a layer has that name, and the last layer has none after it; there, and in
    nets without batch norm, it is the convolution itself.
    """
    modules: dict[str, nn.Module] = {}
    for (name, layer), (next_name, following) in pairwise(net.named_modules()):
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (3, 3):
            continue
        # The layers of a VGG net have numbers, and run in their order.
        in_order = isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Sequential)
        is_own = in_order or next_name == name.replace("conv", "bn")
        modules[name] = following if is_own and isinstance(following, _BatchNorm) else layer
    return modules


@contextmanager
def record_responses(net: nn.Module) -> Iterator[dict[str, float]]:
    """Fill a dict with the standard deviation of each 3x3 layer's response to the next batch.

    The response is the output after batch norm, before ReLU and addition, over all images, channels
    and pixels (Fig. 7 does not say over what); see `responding_modules` for other nets.
    """
    stds: dict[str, Tensor] = {}
    responses: dict[str, float] = {}

    def measure(name: str, response: Tensor) -> None:
        stds[name] = response.detach().float().std()

    hooks = [
        module.register_forward_hook(lambda _, __, response, name=name: measure(name, response))
        for name, module in responding_modules(net).items()
    ]
    try:
        yield responses
    finally:
        for hook in hooks:
            hook.remove()
    if stds:
        values = torch.stack([*stds.values()]).tolist()
        responses.update(zip(stds, values, strict=True))
