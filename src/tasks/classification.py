"""The one LightningModule: a net, its loss, its errors, its optimizer and its rate."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import Metric

from src.training.lr_schedule import MilestoneSchedule

Errors = dict[str, float]
SUMS = ("loss", "hits", "images")


class ErrorMeter(Metric):
    """Loss, hits and images since the last reset, summed on the device.

    `hits[k]` counts the images whose label has the k-th highest score, for the best five (fewer with fewer classes).
    """

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """ErrorMeter scores [N, classes] against labels [N]; `loss` is the mean over the N."""
        best = logits.topk(min(5, logits.shape[1])).indices
        self.hits[: best.shape[1]] += (best == labels[:, None]).sum(0)
        self.images.add_(len(labels))
        self.loss.add_(loss, alpha=len(labels))

    def reset(self) -> None:
        """Starts anew in the same memory, which a captured step goes on counting into."""
        for name in SUMS:
            getattr(self, name).zero_()

    def compute(self) -> tuple[float, int, int, int]:
        """The sums over all processes: loss, top-1 mistakes, top-5 mistakes, images."""
        hits, images = self.hits.tolist(), self.images.item()
        return self.loss.item(), images - hits[0], images - sum(hits), images


class Classifier(LightningModule):
    """Trains and tests a net on batches of images [N, 3, H, W] and labels [N].

    Args:
        net: gives scores [N, classes].
        optimizer: makes an optimizer of parameters and a first rate.
        schedule: gives the rate of each iteration.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: MilestoneSchedule | None = None,
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.make_optimizer, self.schedule = optimizer, schedule
        self.trained, self.tested = ErrorMeter(), ErrorMeter()
        self.last_sums: tuple[float, int, int, int] = (0.0, 0, 0, 0)
        self.rate: float | None = None  # of the latest iteration

    def __setattr__(self, name: str, value: object) -> None:
        # Lightning notes the name of the running hook some 40 times an iteration; nn.Module's way takes 50 us of that.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.net.parameters(), lr=self.schedule(0))

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        rate = self.schedule(batch_idx)  # the run is one epoch: batches are iterations
        if rate != self.rate:
            self.rate = rate
            self._set_rate(rate)

    def _set_rate(self, rate: float) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_validation_start(self) -> None:
        """Gives all processes the first one's batch norm statistics, those that a checkpoint holds.

        Each has gathered them over its own share of each batch. The paper does not say whose it tests with.
        """
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the gradients: the record measures them, and a captured step has them in its own memory."""

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return self._count(self.trained, batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._count(self.tested, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._count(self.tested, batch)

    def _count(self, counts: ErrorMeter, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        counts.update(logits.detach(), labels, loss.detach())
        return loss

    def measure(self) -> Errors:
        """Loss and errors of the training batches since the last call, which the schedule is told as well.

        Waits for the device, so it is not for every iteration.
        """
        sums = self.trained.compute()
        latest = rates(*(now - before for now, before in zip(sums, self.last_sums, strict=True)))
        self.last_sums = sums
        self.schedule.on_train_error(latest["error"])
        return latest

    def pop_train_errors(self) -> Errors:
        """Loss and errors of all training batches since the last call, and starts anew."""
        self.last_sums = (0.0, 0, 0, 0)
        return _take(self.trained)

    def pop_eval_errors(self) -> Errors:
        """Loss and errors of the images tested since the last call, and starts anew."""
        return _take(self.tested)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Each process's own, as the last bit of a sum depends on its order.
        trained = {name: self.all_gather(getattr(self.trained, name)) for name in SUMS}
        trained = {name: sums.reshape(self.trainer.world_size, -1).tolist() for name, sums in trained.items()}
        checkpoint["training"] = {"schedule": self.schedule.state_dict(), "trained": trained, "last": self.last_sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError if the checkpoint is from before each process's sums were kept."""
        state = checkpoint["training"]
        if not isinstance(state["trained"], dict):
            raise ValueError(
                "the checkpoint is of an earlier version of this code: finish the run with that, or start it anew with "
                "another output_dir=FOLDER"
            )
        self.schedule.load_state_dict(state["schedule"])
        self.last_sums = state["last"]
        for name in SUMS:
            mine, each = getattr(self.trained, name), state["trained"][name]
            if len(each) == self.trainer.world_size:
                mine.copy_(torch.tensor(each[self.global_rank]).reshape(mine.shape))
            elif self.global_rank == 0:  # on another number of processes the first counts on for all
                mine.copy_(torch.tensor(each).sum(0).reshape(mine.shape))


def rates(loss: float, mistakes: int, mistakes_top5: int, images: int) -> Errors:
    """Mean loss and errors in percent, from sums."""
    return {
        "loss": loss / images,
        "error": 100 * mistakes / images,
        "error_top5": 100 * mistakes_top5 / images,
    }


def _take(counts: ErrorMeter) -> Errors:
    errors = rates(*counts.compute())
    counts.reset()
    return errors
