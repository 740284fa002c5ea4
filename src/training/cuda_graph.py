"""The training step with less of Python around it: the net compiled, or the whole step as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src.tasks.classification import Classifier

MODES = ("auto", "none", "cudagraph", "inductor")


def resolve_compile(mode: str, device: torch.device, world_size: int, activation_checkpointing: bool = False) -> str:
    """Replace `auto` by `cudagraph` on one GPU and by `none` elsewhere; any other valid mode is returned as it is.

    Raises:
        ValueError: the mode is unknown, or cannot be combined with the device, the world size or checkpointing.
    """
    if mode not in MODES:
        raise ValueError(f"compile={mode} is not one of {', '.join(MODES)}")
    if mode == "auto":
        return "cudagraph" if device.type == "cuda" and world_size == 1 else "none"
    if mode == "cudagraph" and device.type != "cuda":
        raise ValueError(f"compile=cudagraph needs a GPU, not {device.type}: set compile=auto or compile=inductor")
    if mode != "none" and world_size > 1:
        raise ValueError(f"compile={mode} is for one device, and the world size is {world_size}: set compile=auto")
    if mode == "inductor" and activation_checkpointing:
        raise ValueError("compile=inductor and activation_checkpointing=true cannot be combined: set compile=auto")
    return mode


class CUDAGraphStep:
    """`step(*batch)` as one CUDA graph: called a few times as it is, then captured, then replayed.

    What a step reads and writes beside its batch must stay at the same place in memory. All batches are alike in shape.
    """

    ORDINARY_CALLS = 3  # in which kernels are chosen and momentum is made

    def __init__(self, step: Callable[..., object]) -> None:
        self.step, self.calls = step, 0
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def __call__(self, *batch: Tensor) -> None:
        self.calls += 1
        if self.calls <= self.ORDINARY_CALLS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(*batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.calls == self.ORDINARY_CALLS + 1:
            self.batch = [tensor.clone() for tensor in batch]
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.step(*self.batch)
        for own, given in zip(self.batch, batch, strict=True):
            assert own.shape == given.shape
            own.copy_(given)
        self.graph.replay()


class CapturedStepClassifier(Classifier):
    """A Classifier whose training step does all of it: forward, backward, update and counting.

    On a GPU that is one CUDA graph. The same arithmetic as the Classifier's, and the same checkpoints.
    """

    def on_train_start(self) -> None:
        self.optimizer = self.optimizers(use_pl_optimizer=False)
        for group in self.optimizer.param_groups:  # a graph reads the rate from memory
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
        self.step = CUDAGraphStep(self._step) if self.device.type == "cuda" else self._step

    def _step(self, images: Tensor, labels: Tensor) -> None:
        loss = self._count(self.trained, (images, labels))
        with torch.autocast(self.device.type, enabled=False):
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.step(*batch)  # returns no loss, so Lightning does no backward pass of its own

    def optimizer_zero_grad(self, *_: object) -> None:
        pass

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: object, closure: Callable[[], Any]) -> None:
        closure()

    # Testing takes a hundredth of the time: not worth compiling for its own shapes.
    @torch.compiler.set_stance("force_eager")
    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        super().validation_step(batch, index)

    @torch.compiler.set_stance("force_eager")
    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        super().test_step(batch, index)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["lr"] = self.rate
