"""What the tasks on images with objects share: a net without its classifier, and its losses."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.data.object_data import ObjectData
from src.runs.run_dir import RunDir
from src.tasks.base import EXAMPLES, Meter, Metrics, Schedule, Summary, Task


class LossMeter(Meter):
    """Sums of losses over images since the last reset."""

    losses: Tensor
    images: Tensor

    def __init__(self, number: int) -> None:
        super().__init__(losses=torch.zeros(number), images=torch.zeros((), dtype=torch.int64))

    def update(self, losses: Tensor, images: int) -> None:
        """Add the mean losses [number] of a batch of so many images."""
        self.losses.add_(losses, alpha=images)
        self.images.add_(images)

    def compute(self) -> tuple[float, ...]:
        """Return the sums over all processes: the losses, and the number of images."""
        return *self.losses.tolist(), self.images.item()


class ObjectTask(Task):
    """Trains and evaluates a net on images of any size, with the targets of `Example`.

    Args:
        net: A net for classification; its classifier is removed.
        data: Says how images are prepared, and which classes there are.
        seed: Seed of the run, for what a step draws.
        frozen: Whether batch norm keeps its statistics, weights and biases, as in the paper. That
            needs trained weights: a net from scratch diverges with it.
        optimizer: Makes an optimizer from parameters and a first learning rate.
        schedule: Gives the learning rate of each iteration.

    Attributes:
        uses_regions: Whether the task needs the net's `region_features`.
    """

    uses_regions: bool

    mean: Tensor  # of each channel in 0 to 255, [3, 1, 1]
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        data: ObjectData,
        seed: int,
        frozen: bool = False,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(net, LossMeter(len(self.train_metrics)), optimizer, schedule, seed)
        net.remove_classifier(self.uses_regions)  # type: ignore[operator]
        assert data.std is not None
        self.register_buffer("mean", data.mean[:, None, None])
        self.register_buffer("std", data.std[:, None, None])
        self.classes, self.frozen = data.classes, frozen
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training or of evaluation; frozen batch norm stays as it is."""
        super().train(mode)
        if self.frozen:
            freeze_batch_norm(self.net)
        return self

    def normalized(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return images uint8 [3, H, W] as the net takes them."""
        return [(image - self.mean) / self.std for image in images]

    def summarize(self, row: Metrics) -> Summary:
        """Return the loss and the metrics for summary.json, the first one of validation images."""
        metrics = {name: row.get(f"test/{name}") for name in self.eval_metrics}
        first = self.eval_metrics[0]
        results = {"train_loss": row["train/loss"], f"val_{first}": row.get(f"val/{first}")}
        return results | self.test_results(metrics)

    def write_artifacts(self, run_dir: RunDir, data: ObjectData, examples: int = EXAMPLES) -> None:
        """Draw some test images, see `draw_examples`."""
        self.draw_examples(run_dir.path / "examples.png", data, examples)

    @abstractmethod
    def describe_test(self, metrics: Metrics) -> str:
        """Return the metrics of a test in a few words."""

    @abstractmethod
    def test_results(self, metrics: Mapping[str, float | None]) -> Summary:
        """Return the metrics of a test as they are in summary.json, and those of each class."""

    @abstractmethod
    def draw_examples(self, path: Path, data: ObjectData, count: int) -> None:
        """Draw the first test images: what is there above what was found."""

    def parse_protocol(self, name: str) -> Any:
        """Return what a protocol of testing means for the task; a task may have `center` alone.

        Raises:
            ValueError: There is no such protocol.
        """
        if name != "center":
            raise ValueError(f"protocol={name} does not apply to this task: leave it out")

    def test_by(self, protocol: str, others: Sequence["ObjectTask"] = ()) -> None:
        """Test by a protocol from now on, together with other modules if the task can do that.

        Raises:
            ValueError: The task has no such protocol.
        """
        self.protocol = self.parse_protocol(protocol)
        if others:
            raise ValueError("this task has no ensembles: evaluate one run at a time")

    def update_losses(self, losses: Sequence[Tensor], images: int) -> Tensor:
        """Count the parts of the loss of a batch, and return their sum."""
        parts = torch.stack([*losses])
        loss = parts.sum()
        self.train_meter.update(torch.cat([loss[None], parts]).detach(), images)
        return loss

    def mean_metrics(self, *sums: float) -> Metrics:
        """Return the mean losses from sums."""
        *losses, images = sums
        return {name: x / images for name, x in zip(self.train_metrics, losses, strict=True)}

    def describe_training(self) -> str:
        """Return the recent loss, for the progress bar."""
        return f"loss {self.recent['loss']:.3f}"


def freeze_batch_norm(net: nn.Module) -> None:
    """Let batch norm use its running statistics and never change again (Appendix A)."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
