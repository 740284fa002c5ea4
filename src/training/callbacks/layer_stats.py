"""Measure single layers: gradient norms and first signals (Sec. 4.1), responses (Fig. 7)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.models.complexity import weighted_layers
from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.training.callbacks.base import RunCallback
from src.training.intervals import Intervals

NORMS = (_BatchNorm, nn.GroupNorm)
Stats = dict[str, float]  # by layer
Signals = tuple[Stats, Stats]  # forward and backward

# The columns of layers.csv; the last two are of the first iteration alone.
LAYER_COLUMNS = (
    *("iteration", "layer", "gradient", "scaled_gradient", "response"),
    *("forward_std", "backward_std"),
)


class LayerStats(RunCallback):
    """Write layers.csv: a row for each layer at the first iteration and at each evaluation.

    The gradients are those of the iteration's own backward pass. At the first iteration the norms
    of the weights are those before its update, at evaluations those after it. The signals of the
    first iteration are those of the untrained net and of its first batch.
    """

    def __init__(self, run_dir: RunDir, intervals: Intervals) -> None:
        self.run_dir, self.intervals = run_dir, intervals
        self.measuring = ExitStack()

    def on_train_start(self, trainer: Trainer, module: Task) -> None:
        """Measure the weights before the first update, and start to measure the first signals.

        A captured step has no hook between its backward pass and its update.
        """
        self.weights = weight_norms(module.net)
        self.signals: Signals = ({}, {})
        # Compiled code must not have hooks in it. A CUDA graph has none: its first steps are eager.
        if trainer.global_step == 0 and "inductor" not in self.run_dir.config["compile"]:
            self.signals = self.measuring.enter_context(record_signals(module.net))

    def on_train_batch_end(self, trainer: Trainer, module: Task, *_: object) -> None:
        """Write the rows of the first iteration, unless its evaluation will write them."""
        self.measuring.close()
        if trainer.global_step == 1 and not self.intervals.evaluates(1):
            self._write(trainer, gradient_norms(module.net))

    def on_validation_start(self, trainer: Trainer, module: Task) -> None:
        """Measure the gradients of the latest iteration, and start to measure responses."""
        self.gradients = gradient_norms(module.net)
        if trainer.global_step > 1:
            self.weights = weight_norms(module.net)
        self.responses, _ = self.measuring.enter_context(record_signals(module.net))

    def on_validation_batch_end(self, *_: object) -> None:
        """Stop after the first batch, which is enough."""
        self.measuring.close()

    def on_validation_end(self, trainer: Trainer, module: Task) -> None:
        """Write the rows."""
        self.measuring.close()  # there is no batch on a rank that could read none of its images
        self._write(trainer, self.gradients, self.responses)

    def _write(self, trainer: Trainer, gradients: Stats, responses: Stats | None = None) -> None:
        if not trainer.is_global_zero:
            return
        iteration = trainer.global_step
        forward, backward = self.signals if iteration == 1 else ({}, {})
        rows = [
            {
                "iteration": iteration,
                "layer": layer,
                "gradient": gradient,
                "scaled_gradient": gradient * self.weights[layer],
                "response": (responses or {}).get(layer),
                "forward_std": forward.get(layer),
                "backward_std": backward.get(layer),
            }
            for layer, gradient in gradients.items()
        ]
        self.run_dir.append_layers(LAYER_COLUMNS, rows)


def gradient_norms(net: nn.Module) -> Stats:
    """Return the L2 norm of the latest gradient of each layer's weights.

    Batch norm makes it inversely proportional to the norm of the weights before it: only the
    product of both norms can be compared between layers and iterations.
    """
    gradients = {name: layer.weight.grad for name, layer in weighted_layers(net).items()}
    # Without one are the layers that the loss does not depend on.
    return _norms({name: value for name, value in gradients.items() if value is not None})


def weight_norms(net: nn.Module) -> Stats:
    """Return the L2 norm of each layer's weights."""
    return _norms({name: layer.weight.detach() for name, layer in weighted_layers(net).items()})


def _norms(tensors: dict[str, Tensor]) -> Stats:
    if not tensors:
        return {}
    # Stacked, so that the device is waited for once and not once per layer.
    norms = torch.stack([tensor.float().norm() for tensor in tensors.values()])
    return dict(zip(tensors, norms.tolist(), strict=True))


def responding_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return, for each 3x3 layer, the module whose output is its response.

    That is the layer's batch or group norm, as `bn2` is that of `conv2`. In a block with
    pre-activation, the batch norm before a layer has that name, and the last layer has none after
    it; there, and in nets without any norm, it is the convolution itself.
    """
    modules: dict[str, nn.Module] = {}
    for (name, layer), (next_name, following) in pairwise(net.named_modules()):
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (3, 3):
            continue
        # The layers of a VGG net have numbers, and run in their order.
        in_order = isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Sequential)
        is_own = in_order or next_name == name.replace("conv", "bn")
        modules[name] = following if is_own and isinstance(following, NORMS) else layer
    return modules


@contextmanager
def record_signals(net: nn.Module) -> Iterator[Signals]:
    """Fill dicts with the standard deviations of each 3x3 layer's signals for the next batch.

    The forward signal is the layer's response: the output after batch norm, before ReLU and
    addition, over all images, channels and pixels (Fig. 7 does not say over what); see
    `responding_modules` for other nets. The backward signal is the gradient of the loss with
    respect to the response; there is none without a backward pass.
    """
    recorded: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    signals: Signals = ({}, {})

    def measure(name: str, response: Tensor) -> None:
        forward, backward = recorded
        forward[name] = response.detach().float().std()
        if response.requires_grad:
            response.register_hook(
                lambda gradient: backward.update({name: gradient.detach().float().std()})
            )

    hooks = [
        module.register_forward_hook(lambda _, __, response, name=name: measure(name, response))
        for name, module in responding_modules(net).items()
    ]
    try:
        yield signals
    finally:
        for hook in hooks:
            hook.remove()
    for stats, stds in zip(signals, recorded, strict=True):
        if stds:
            values = torch.stack([*stds.values()]).tolist()
            stats.update(zip(stds, values, strict=True))
