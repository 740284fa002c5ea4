"""Image classification: the LightningModule, its loss, its metrics and its learning rate."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from src.tasks.base import Meter, Metrics, Schedule, Summary, Task

Batch = tuple[Tensor, Tensor]  # images [N, 3, H, W] and labels [N]
Sums = tuple[float, int, int, int]  # loss, top-1 errors, top-5 errors, images


class ErrorMeter(Meter):
    """Sums of loss, hits and images since the last reset.

    `hits[k]` counts the images whose label has the k-th highest score, for the best five (fewer
    with fewer classes).
    """

    loss: Tensor
    hits: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__(
            loss=torch.zeros(()),
            hits=torch.zeros(5, dtype=torch.int64),
            images=torch.zeros((), dtype=torch.int64),
        )

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            logits: scores [N, classes].
            labels: classes [N].
            loss: the mean over the batch.
        """
        best = logits.topk(min(5, logits.shape[1])).indices
        self.hits[: best.shape[1]] += (best == labels[:, None]).sum(0)
        self.images.add_(len(labels))
        self.loss.add_(loss, alpha=len(labels))

    def compute(self) -> Sums:
        """Return the sums over all processes: loss, top-1 errors, top-5 errors, images."""
        hits, images = self.hits.tolist(), self.images.item()
        return self.loss.item(), int(images - hits[0]), int(images - sum(hits)), int(images)


def with_fixed_signature(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Note the signature of a hook, which Lightning would otherwise work out in each iteration."""
    hook.__signature__ = inspect.signature(hook)  # type: ignore[attr-defined]
    return hook


class Classifier(Task):
    """Trains and evaluates a net on batches of images [N, 3, H, W] and labels [N].

    Args:
        net: gives scores [N, classes].
        optimizer: makes an optimizer from parameters and a first learning rate.
        schedule: gives the learning rate of each iteration.
        augment: turns the tensors of a training batch, as the loader yields it, into images and
            labels. It is part of the training step.
        seed: seed of the run, for a net that draws random numbers, as dropout does.
    """

    train_metrics = eval_metrics = ("loss", "error", "error_top5")

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        augment: Callable[..., Batch] = lambda images, labels: (images, labels),
        seed: int | None = None,
    ) -> None:
        super().__init__(net, ErrorMeter(), optimizer, schedule, seed)
        self.augment, self.eval_meter = augment, ErrorMeter()

    @with_fixed_signature
    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor | None:
        """Return the loss of a batch."""
        self.seed_step(index)
        return self.measure(self.train_meter, self.augment(*batch))

    def validation_step(self, batch: Batch, _: int) -> None:
        """Evaluate a batch."""
        self.measure(self.eval_meter, batch)

    def test_step(self, batch: Batch, _: int) -> None:
        """Evaluate a batch."""
        self.measure(self.eval_meter, batch)

    def measure(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the loss of a batch, and add its errors to a meter."""
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        meter.update(logits.detach(), labels, loss.detach())
        return loss

    def recent_train_metrics(self) -> Metrics:
        """Return the metrics since the last call; the schedule takes note of the error."""
        metrics = super().recent_train_metrics()
        self.schedule.on_train_error(metrics["error"])
        return metrics

    def pop_eval_metrics(self) -> Metrics:
        """Return the metrics of the images evaluated since the last call, and reset them.

        Raises:
            ValueError: There are none, as with data.on_bad=skip and only damaged files.
        """
        sums = self.eval_meter.compute()
        if not sums[-1]:
            raise ValueError("none of the images to evaluate can be read")
        metrics = self.mean_metrics(*sums)
        self.eval_meter.reset()
        return metrics

    def on_evaluated(self, metrics: Metrics) -> None:
        """Let the schedule take note of an evaluation during training."""
        self.schedule.on_eval_error(metrics["error"])

    def mean_metrics(self, *sums: float) -> Metrics:
        """Return the mean loss, and the errors in percent, from sums."""
        loss, errors, errors_top5, images = sums
        return {
            "loss": loss / images,
            "error": 100 * errors / images,
            "error_top5": 100 * errors_top5 / images,
        }

    def summarize(self, row: Metrics) -> Summary:
        """Return the errors for summary.json, from the last row and the test metrics."""
        return {
            "train_error": row["train/error"],
            "val_error": row.get("val/error"),
            "test_error": row["test/error"],
            "test_error_top5": row["test/error_top5"],
        }

    def describe_training(self) -> str:
        """Return the recent training error, for the progress bar."""
        return f"train error {self.recent['error']:.1f}%"

    def describe_evaluation(self, row: Metrics, split: str) -> str:
        """Return the errors of both splits."""
        return f"error: train {row['train/error']:.2f}%  {split} {row[f'{split}/error']:.2f}%"
