"""What the LightningModules of all tasks share: the learning rate, and exact resuming."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from src.data.sampler import STEP, rng_for
from src.runs.run_dir import RunDir

Metrics = dict[str, float]
Summary = dict[str, Any]
EXAMPLES = 8  # test images in the picture that a run keeps


class Schedule:
    """A learning-rate schedule; a subclass overrides what it has a use for."""

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of iteration 0, 1, ..."""
        raise NotImplementedError

    def on_train_error(self, error: float) -> None:
        """Take note of the training error of the latest iterations, in percent."""

    def on_eval_error(self, error: float) -> None:
        """Take note of the error of an evaluation, in percent."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint; none by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""


def gather(value: Tensor, group: Any = None) -> list[Tensor]:
    """Return a value of each process, as torchmetrics asks for it.

    NCCL gathers from GPUs alone, but Lightning moves a module to the CPU at the end of a test,
    before its metrics are computed.
    """
    own = value.cuda() if torch.distributed.get_backend(group) == "nccl" else value
    return [part.to(value.device) for part in gather_all_tensors(own, group)]


class Meter(Metric):
    """Sums over the images since the last reset, kept on the device.

    Args:
        sums: What each sum starts from: zeros of its shape and type.
    """

    def __init__(self, **sums: Tensor) -> None:
        super().__init__(compute_with_cache=False, dist_sync_fn=gather)
        self.sums = tuple(sums)
        for name, zeros in sums.items():
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def reset(self) -> None:
        """Set the sums to zero in place: a captured step keeps adding to the same memory."""
        for name in self.sums:
            getattr(self, name).zero_()


class Task(LightningModule):
    """Trains and evaluates a net, with plain SGD steps of one optimizer.

    A subclass says what a step and an evaluation are, and names its metrics.

    Args:
        net: the net, which learns.
        train_meter: sums of what is measured in training.
        optimizer: makes an optimizer from parameters and a first learning rate.
        schedule: gives the learning rate of each iteration.
        seed: seed of the run, for what a step draws at random; None if it draws nothing.

    Attributes:
        train_metrics: the names of the metrics of training, as they are in metrics.csv after
            `train/`; the loss is the first.
        eval_metrics: the names of those of an evaluation, after `val/` and `test/`.
        depth: the depth of the net; None if it has no such attribute.
        lr: the learning rate of the latest iteration.
        recent: the metrics of `recent_train_metrics`, as it last returned them.
    """

    train_metrics: Sequence[str]
    eval_metrics: Sequence[str]

    net: nn.Module
    make_optimizer: Callable[..., Optimizer]
    schedule: Schedule

    def __init__(
        self,
        net: nn.Module,
        train_meter: Meter,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.depth: int | None = getattr(net, "depth", None)
        self.net = net.to(memory_format=torch.channels_last)
        if optimizer and schedule:  # without them a net can only be evaluated
            self.make_optimizer, self.schedule = optimizer, schedule
        self.train_meter = train_meter
        self.last_sums: Sequence[float] = ()  # of `recent_train_metrics`; none before the first
        self.lr = math.nan
        self.recent: Metrics = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, quickly for the one that Lightning sets most often."""
        # Lightning notes the name of the running hook some 40 times per iteration.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def mean_metrics(self, *sums: float) -> Metrics:
        """Return the training metrics from the sums that the meter computes."""

    @abstractmethod
    def pop_eval_metrics(self) -> Metrics:
        """Return the metrics of the images evaluated since the last call, and reset them."""

    @abstractmethod
    def on_evaluated(self, metrics: Metrics) -> None:
        """Let the schedule take note of an evaluation during training."""

    @abstractmethod
    def summarize(self, row: Metrics) -> Summary:
        """Return the results for summary.json, from the last row and the test metrics."""

    def write_artifacts(self, run_dir: RunDir, data: Any, examples: int = EXAMPLES) -> None:
        """Write what a finished run keeps besides its numbers; by default nothing.

        Args:
            run_dir: The run.
            data: Its data.
            examples: The number of test images in its picture, where a task draws one.
        """

    @abstractmethod
    def describe_training(self) -> str:
        """Return the recent training metrics in two or three words, for the progress bar."""

    @abstractmethod
    def describe_evaluation(self, row: Metrics, split: str) -> str:
        """Return the row of an evaluation of a split in a few words."""

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer, with the learning rate of iteration 0."""
        return self.make_optimizer(self.learned_parameters(), lr=self.schedule(0))

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer updates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

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

    def seed_step(self, iteration: int) -> None:
        """Seed the global generator for a step, or a resumed run would draw other numbers."""
        if self.seed is not None:
            rng = rng_for(self.seed, STEP, iteration, self.global_rank)
            torch.manual_seed(int(rng.integers(2**63)))

    def on_validation_start(self) -> None:
        """Give all ranks the batch norm statistics of rank 0, which a checkpoint saves.

        Each rank has gathered its own, over its share of each batch. The paper does not say whose
        it evaluates with.
        """
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients: LayerStats measures them, and a captured step owns their memory."""

    def recent_train_metrics(self) -> Metrics:
        """Return the metrics of the training batches since the last call.

        Waits for the device, so this is not for every iteration.
        """
        sums = self.train_meter.compute()
        before = self.last_sums or (0,) * len(sums)
        since = (now - then for now, then in zip(sums, before, strict=True))
        self.last_sums, self.recent = sums, self.mean_metrics(*since)
        return self.recent

    def pop_train_metrics(self) -> Metrics:
        """Return the metrics of all training batches since the last call, and reset them."""
        self.last_sums = ()
        metrics = self.mean_metrics(*self.train_meter.compute())
        self.train_meter.reset()
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the schedule and each rank's sums: the last bit of a sum depends on its order."""
        sums = {}
        for name in self.train_meter.sums:
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
        for name in self.train_meter.sums:
            own, saved = getattr(self.train_meter, name), torch.tensor(state["sums"][name])
            if len(saved) == self.trainer.world_size:
                own.copy_(saved[self.global_rank].reshape(own.shape))
            elif self.global_rank == 0:  # with another world size rank 0 continues the sum of all
                own.copy_(saved.sum(0).reshape(own.shape))
