"""The training step with less of Python around it: the net compiled, or the whole step as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src.classifier import Classifier

STEPS = ("auto", "eager", "graph", "compile")


def resolve_step(step: str, device: torch.device, devices: int, recompute: bool = False) -> str:
    """`auto` as graph on one GPU, else as eager; the rest as it is. Raises ValueError for what cannot be had."""
    if step not in STEPS:
        raise ValueError(f"step={step} is not one of {', '.join(STEPS)}")
    if step == "auto":
        return "graph" if device.type == "cuda" and devices == 1 else "eager"
    if step == "graph" and device.type != "cuda":
        raise ValueError(f"step=graph needs a GPU and this runs on {device.type}: say step=auto or step=compile")
    if step != "eager" and devices > 1:
        raise ValueError(f"step={step} is for one device, and there are {devices}: say step=auto")
    if step == "compile" and recompute:
        raise ValueError("step=compile and recompute=true do not go together: say step=auto")
    return step


class Graph:
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


class CapturedClassifier(Classifier):
    """A Classifier whose training step does all of it: forward, backward, update and counting.

    On a GPU that is one CUDA graph. The same arithmetic as the Classifier's, and the same checkpoints.
    """

    def on_train_start(self) -> None:
        self.optimizer = self.optimizers(use_pl_optimizer=False)
        for group in self.optimizer.param_groups:  # a graph reads the rate from memory
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
        self.step = Graph(self._step) if self.device.type == "cuda" else self._step

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
