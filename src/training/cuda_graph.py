"""The training step with less Python around it: compiled, or captured as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from src.tasks.classification import Classifier

MODES = ("auto", "none", "cudagraph", "inductor")


def resolve_compile(
    mode: str, device: torch.device, world_size: int, activation_checkpointing: bool = False
) -> str:
    """Replace `auto` by `cudagraph` on one GPU and by `none` elsewhere; keep other modes.

    Raises:
        ValueError: the mode is unknown, or cannot be combined with the other values.
    """
    if mode not in MODES:
        raise ValueError(f"compile={mode} is not one of {', '.join(MODES)}")
    if mode == "auto":
        return "cudagraph" if device.type == "cuda" and world_size == 1 else "none"
    if mode == "cudagraph" and device.type != "cuda":
        raise ValueError(f"compile=cudagraph needs a GPU, not {device.type}: set compile=auto")
    if mode != "none" and world_size > 1:
        raise ValueError(
            f"compile={mode} is for one device, the world size is {world_size}: set compile=auto"
        )
    if mode == "inductor" and activation_checkpointing:
        raise ValueError(
            "compile=inductor and activation_checkpointing=true exclude each other: "
            "set compile=auto"
        )
    return mode


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
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.step(*self.batch)
        for own, given in zip(self.batch, batch, strict=True):
            assert own.shape == given.shape, (own.shape, given.shape)
            own.copy_(given)
        self.graph.replay()


class CapturedStepClassifier(Classifier):
    """A Classifier whose training step does everything: forward, backward, update and counting.

    On a GPU that is one CUDA graph. The arithmetic and the checkpoints are those of the Classifier.
    """

    def on_train_start(self) -> None:
        """Move the learning rate into memory, where a graph reads it."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        self.optimizer = optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
        self.step = CUDAGraphStep(self.full_step) if self.device.type == "cuda" else self.full_step

    def full_step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch."""
        loss = self.measure(self.train_meter, (images, labels))
        with torch.autocast(self.device.type, enabled=False):
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def set_lr(self, lr: float) -> None:
        """Write a new learning rate where the graph reads it."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Train on a batch; no loss is returned, so Lightning runs no backward pass of its own."""
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the learning rate as a number, as an uncaptured step does."""
        super().on_save_checkpoint(checkpoint)
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["lr"] = self.lr
