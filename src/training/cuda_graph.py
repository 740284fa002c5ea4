"""The training step with less Python around it: compiled, or captured as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from src.tasks.classification import Classifier, with_fixed_signature

# The hooks of callbacks that Lightning calls around its own backward pass and update.
GRADIENT_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
MODES = ("auto", "none", "cudagraph", "inductor", "inductor+cudagraph")


def resolve_compile(
    mode: str,
    trainer: Trainer,
    activation_checkpointing: bool = False,
    optimizer: str = "torch.optim.SGD",
) -> str:
    """Replace `auto` by `cudagraph` on one GPU and by `none` elsewhere; keep other modes.

    A setting that a captured step would ignore replaces every mode by `none`, with a message. So
    does, with a graph, any other optimizer than SGD: most cannot be captured as they are.

    Args:
        mode: One of `MODES`.
        trainer: Lightning's Trainer of the run.
        activation_checkpointing: Whether the net uses it.
        optimizer: The name of the optimizer's class.

    Raises:
        ValueError: the mode is unknown, or cannot be combined with the other values.
    """
    device, world_size = trainer.strategy.root_device.type, trainer.world_size
    if mode not in MODES:
        raise ValueError(f"compile={mode} is not one of {', '.join(MODES)}")
    if "cudagraph" in mode and device != "cuda":
        raise ValueError(f"compile={mode} needs a GPU, not {device}: set compile=auto")
    if mode not in ("auto", "none") and world_size > 1:
        raise ValueError(
            f"compile={mode} is for one device, the world size is {world_size}: set compile=auto"
        )
    if "inductor" in mode and activation_checkpointing:
        raise ValueError(
            f"compile={mode} and activation_checkpointing=true exclude each other: set compile=auto"
        )
    if mode == "auto":
        mode = "cudagraph" if device == "cuda" and world_size == 1 else "none"
    ignored = ignored_settings(trainer)
    if ignored and mode != "none":
        print(f"compile=none instead of {mode}, which would ignore {', '.join(ignored)}")
        return "none"
    if "cudagraph" in mode and optimizer != "torch.optim.SGD":
        print(f"compile=none instead of {mode}, which captures torch.optim.SGD, not {optimizer}")
        return "none"
    return mode


def ignored_settings(trainer: Trainer) -> list[str]:
    """Return the settings that act only on Lightning's own backward pass and update."""
    settings = {
        f"trainer.gradient_clip_val={trainer.gradient_clip_val}": trainer.gradient_clip_val,
        # Gradients in half precision vanish unless the loss is scaled.
        f"trainer.precision={trainer.precision}": trainer.precision == "16-mixed",
        # DDP reduces the gradients in its own backward pass, also in the only process.
        f"trainer.strategy={type(trainer.strategy).__name__}": not isinstance(
            trainer.strategy, SingleDeviceStrategy
        ),
    }
    hooks = {
        f"{type(callback).__name__}.{hook}": getattr(type(callback), hook)
        not in (None, getattr(Callback, hook))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for hook in GRADIENT_HOOKS
    }
    return [setting for setting, is_ignored in (settings | hooks).items() if is_ignored]


class CUDAGraphStep:
    """Call `step(*batch)` as one CUDA graph: after some eager calls it is captured, then replayed.

    Everything that a step reads and writes besides its batch must stay at the same address. All
    batches have the same shapes.
    """

    EAGER_CALLS = 3  # in which kernels are chosen and the momentum buffers are created

    def __init__(self, step: Callable[..., object]) -> None:
        self.step, self.calls = step, 0
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def __call__(self, *batch: Tensor) -> None:
        """Run the step on a batch."""
        self.calls += 1
        if self.calls <= self.EAGER_CALLS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(*batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return

        if self.calls == self.EAGER_CALLS + 1:
            self.batch = [tensor.clone() for tensor in batch]
            # By default a capture forbids CUDA calls in all threads, and the thread that copies
            # the loader's batches into pinned memory makes some.
            with torch.cuda.graph(
                self.graph, stream=self.stream, capture_error_mode="thread_local"
            ):
                self.step(*self.batch)
        for own, given in zip(self.batch, batch, strict=True):
            assert own.shape == given.shape, (own.shape, given.shape)
            own.copy_(given)
        self.graph.replay()


class CapturedStepClassifier(Classifier):
    """A Classifier whose training step does everything from augmentation to update and counting.

    The arithmetic and the checkpoints are those of the Classifier.

    Args:
        arguments, keywords: those of the Classifier.
        use_graph: whether the step is one CUDA graph.
    """

    def __init__(self, *arguments: Any, use_graph: bool, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.use_graph = use_graph

    def on_train_start(self) -> None:
        """Move the learning rate into memory, where a graph reads it."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        self.optimizer = optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
        self.step = CUDAGraphStep(self.full_step) if self.use_graph else self.full_step

    def full_step(self, *batch: Tensor) -> None:
        """Train on a batch as the loader yields it."""
        loss = self.measure(self.train_meter, self.augment(*batch))
        with torch.autocast(self.device.type, enabled=False):
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def set_lr(self, lr: float) -> None:
        """Write a new learning rate where the graph reads it."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)

    @with_fixed_signature
    def training_step(self, batch: tuple[Tensor, ...], index: int) -> None:
        """Train on a batch; no loss is returned, so Lightning runs no backward pass of its own."""
        self.seed_step(index)  # a graph takes the state of the generator when it is replayed
        self.step(*batch)

    def optimizer_zero_grad(self, *_: object) -> None:
        """No-op: the step does it."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Only run the closure, which calls `training_step`."""
        optimizer_closure()

    # Evaluation takes a hundredth of the time, and compiling for its shapes would take longer.
    @torch.compiler.set_stance("force_eager")
    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Evaluate a batch without compiled code."""
        super().validation_step(batch, index)

    @torch.compiler.set_stance("force_eager")
    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Evaluate a batch without compiled code."""
        super().test_step(batch, index)
