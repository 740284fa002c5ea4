"""Image classification: the LightningModule, its loss, its metrics and its learning rate."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import Metric

Batch = tuple[Tensor, Tensor]  # images [N, 3, H, W] and labels [N]
Metrics = dict[str, float]
Sums = tuple[float, int, int, int]  # loss, top-1 errors, top-5 errors, images
SUMS = ("loss", "hits", "images")


class Schedule(Protocol):
    """What a learning-rate schedule offers to a task."""

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of iteration 0, 1, ..."""

    def on_train_error(self, error: float) -> None:
        """Take note of the training error of the latest iterations, in percent."""

    def on_eval_error(self, error: float) -> None:
        """Take note of the error of an evaluation, in percent."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""


class ErrorMeter(Metric):
    """Sums of loss, hits and images since the last reset, kept on the device.

    `hits[k]` counts the images whose label has the k-th highest score, for the best five (fewer
    with fewer classes).
    """

    loss: Tensor
    hits: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

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

    def reset(self) -> None:
        """Set the sums to zero in place: a captured step keeps adding to the same memory."""
        for name in SUMS:
            getattr(self, name).zero_()

    def compute(self) -> Sums:
        """Return the sums over all processes: loss, top-1 errors, top-5 errors, images."""
        hits, images = self.hits.tolist(), self.images.item()
        return self.loss.item(), int(images - hits[0]), int(images - sum(hits)), int(images)


def with_fixed_signature(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Note the signature of a hook, which Lightning would otherwise work out in each iteration."""
    hook.__signature__ = inspect.signature(hook)  # type: ignore[attr-defined]
    return hook


class Classifier(LightningModule):
    """Trains and evaluates a net on batches of images [N, 3, H, W] and labels [N].

    Args:
        net: gives scores [N, classes].
        optimizer: makes an optimizer from parameters and a first learning rate.
        schedule: gives the learning rate of each iteration.
        augment: turns the tensors of a training batch, as the loader yields it, into images and
            labels. It is part of the training step.

    Attributes:
        metrics: the names of the task's metrics, as they are in metrics.csv after `train/`, `val/`
            and `test/`.
        headline: the metric that stands for the others in messages and that a schedule takes note
            of.
        higher_is_better: whether a higher value of it is better.
        lr: the learning rate of the latest iteration.
        recent: the metrics of `recent_train_metrics`, as it last returned them.
    """

    metrics = ("loss", "error", "error_top5")
    headline = "error"
    higher_is_better = False

    net: nn.Module
    make_optimizer: Callable[..., Optimizer]
    schedule: Schedule

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        augment: Callable[..., Batch] = lambda images, labels: (images, labels),
    ) -> None:
        super().__init__()
        self.augment = augment
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if optimizer and schedule:  # without them a net can only be evaluated
            self.make_optimizer, self.schedule = optimizer, schedule
        self.train_meter, self.eval_meter = ErrorMeter(), ErrorMeter()
        self.last_sums: Sums = (0.0, 0, 0, 0)
        self.lr = math.nan
        self.recent: Metrics = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, quickly for the one that Lightning sets most often."""
        # Lightning notes the name of the running hook some 40 times per iteration.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer, with the learning rate of iteration 0."""
        return self.make_optimizer(self.net.parameters(), lr=self.schedule(0))

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Set the learning rate; the run is one epoch, so batches are iterations."""
        lr = self.schedule(batch_idx)
        if lr != self.lr:
            self.lr = lr
            self.set_lr(lr)

    def set_lr(self, lr: float) -> None:
        """Give the optimizer a new learning rate, rounded to float32.

        A captured step reads it from a float32 tensor, and both must do the same arithmetic.
        """
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = float(np.float32(lr))

    def on_validation_start(self) -> None:
        """Give all ranks the batch norm statistics of rank 0, which a checkpoint saves.

        Each rank has gathered its own, over its share of each batch. The paper does not say whose
        it evaluates with.
        """
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients: LayerStats measures them, and a captured step owns their memory."""

    @with_fixed_signature
    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor | None:
        """Return the loss of a batch."""
        return self.measure(self.train_meter, self.augment(*batch))

    def validation_step(self, batch: Batch, _: int) -> None:
        """Evaluate a batch."""
        self.measure(self.eval_meter, batch)

    def test_step(self, batch: Batch, _: int) -> None:
        """Evaluate a batch."""
        self.measure(self.eval_meter, batch)

    def measure(self, meter: ErrorMeter, batch: Batch) -> Tensor:
        """Return the loss of a batch, and add its errors to a meter."""
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        meter.update(logits.detach(), labels, loss.detach())
        return loss

    def recent_train_metrics(self) -> Metrics:
        """Return the metrics of the training batches since the last call.

        The schedule takes note of the error.
        Waits for the device, so this is not for every iteration.
        """
        sums = self.train_meter.compute()
        since = (now - before for now, before in zip(sums, self.last_sums, strict=True))
        self.last_sums, self.recent = sums, mean_metrics(*since)
        self.schedule.on_train_error(self.recent["error"])
        return self.recent

    def pop_train_metrics(self) -> Metrics:
        """Return the metrics of all training batches since the last call, and reset them."""
        self.last_sums = (0.0, 0, 0, 0)
        return pop_metrics(self.train_meter)

    def pop_eval_metrics(self) -> Metrics:
        """Return the metrics of the images evaluated since the last call, and reset them."""
        return pop_metrics(self.eval_meter)

    def on_evaluated(self, metrics: Metrics) -> None:
        """Let the schedule take note of an evaluation during training."""
        self.schedule.on_eval_error(metrics["error"])

    def summarize(self, row: Metrics) -> dict[str, float | None]:
        """Return the numbers of summary.json, from the last row and the test metrics."""
        return {
            "train_error": row["train/error"],
            "val_error": row.get("val/error"),
            "test_error": row["test/error"],
            "test_error_top5": row["test/error_top5"],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the schedule and each rank's sums: the last bit of a sum depends on its order."""
        sums = {}
        for name in SUMS:
            gathered = torch.as_tensor(self.all_gather(getattr(self.train_meter, name)))
            sums[name] = gathered.reshape(self.trainer.world_size, -1).tolist()
        checkpoint["training"] = {
            "schedule": self.schedule.state_dict(),
            "sums": sums,
            "last_sums": self.last_sums,
        }
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["lr"] = self.lr  # not rounded to float32, and a number also for a captured step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved, also for another world size."""
        state = checkpoint["training"]
        self.schedule.load_state_dict(state["schedule"])
        self.last_sums = state["last_sums"]
        for name in SUMS:
            own, saved = getattr(self.train_meter, name), torch.tensor(state["sums"][name])
            if len(saved) == self.trainer.world_size:
                own.copy_(saved[self.global_rank].reshape(own.shape))
            elif self.global_rank == 0:  # with another world size rank 0 continues the sum of all
                own.copy_(saved.sum(0).reshape(own.shape))


def mean_metrics(loss: float, errors: float, errors_top5: float, images: float) -> Metrics:
    """Return the mean loss, and the errors in percent, from sums."""
    return {
        "loss": loss / images,
        "error": 100 * errors / images,
        "error_top5": 100 * errors_top5 / images,
    }


def pop_metrics(meter: ErrorMeter) -> Metrics:
    """Return the metrics of a meter, and reset it."""
    metrics = mean_metrics(*meter.compute())
    meter.reset()
    return metrics
