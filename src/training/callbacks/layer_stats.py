"""Measure single layers: gradient norms (Sec. 4.1) and, at evaluations, responses (Fig. 7)."""

from collections.abc import Iterable, Iterator
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
from src.training.intervals import Intervals


class LayerStats(RunCallback):
    """Write layers.csv: a row for each layer at the first iteration and at each evaluation.

    The gradients are those of the iteration's own backward pass. At the first iteration the norms
    of the weights are those before its update, at evaluations those after it.
    """

    def __init__(self, run_dir: RunDir, intervals: Intervals) -> None:
        self.run_dir, self.intervals = run_dir, intervals
        self.measuring = ExitStack()

    def on_train_start(self, trainer: Trainer, module: Classifier) -> None:
        """Measure the weights before the first update.

        A captured step has no hook between its backward pass and its update.
        """
        self.weights = weight_norms(module.net)

    def on_train_batch_end(self, trainer: Trainer, module: Classifier, *_: object) -> None:
        """Write the rows of the first iteration, unless its evaluation will write them."""
        if trainer.global_step == 1 and not self.intervals.evaluates(1):
            self._write(trainer, gradient_norms(module.net), {})

    def on_validation_start(self, trainer: Trainer, module: Classifier) -> None:
        """Measure the gradients of the latest iteration, and start to measure responses."""
        self.gradients = gradient_norms(module.net)
        if trainer.global_step > 1:
            self.weights = weight_norms(module.net)
        self.responses = self.measuring.enter_context(record_responses(module.net))

    def on_validation_batch_end(self, *_: object) -> None:
        """Stop after the first batch, which is enough."""
        self.measuring.close()

    def on_validation_end(self, trainer: Trainer, module: Classifier) -> None:
        """Write the rows."""
        self.measuring.close()  # there is no batch on a rank that could read none of its images
        self._write(trainer, self.gradients, self.responses)

    def _write(
        self, trainer: Trainer, gradients: dict[str, float], responses: dict[str, float]
    ) -> None:
        if trainer.is_global_zero:
            self.run_dir.append_layers(trainer.global_step, gradients, self.weights, responses)


def gradient_norms(net: nn.Module) -> dict[str, float]:
    """Return the L2 norm of the latest gradient of each layer's weights.

    Batch norm makes it inversely proportional to the norm of the weights before it: only the
    product of both norms can be compared between layers and iterations.
    """
    layers = weighted_layers(net)
    gradients = [layer.weight.grad for layer in layers.values()]
    return _norms(layers, [gradient for gradient in gradients if gradient is not None])


def weight_norms(net: nn.Module) -> dict[str, float]:
    """Return the L2 norm of each layer's weights."""
    layers = weighted_layers(net)
    return _norms(layers, [layer.weight.detach() for layer in layers.values()])


def _norms(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[str, float]:
    # Stacked, so that the device is waited for once and not once per layer.
    norms = torch.stack([tensor.float().norm() for tensor in tensors])
    return dict(zip(names, norms.tolist(), strict=True))


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
