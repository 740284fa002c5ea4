"""Learning-rate schedules: by iteration (Sec. 4.2), or by the validation error (Sec. 3.4).

torch's schedulers are not used for them: they multiply the learning rate again and again, which
gives 0.010000000000000002 where the paper says 0.01, and none of them starts with a warm-up that
ends at a training error.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pydoc import locate
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.tasks.base import Schedule


def reduced_lr(lr: float, gamma: float, times: int) -> float:
    """Return `lr * gamma**times`, rounded once: 0.1, 0.01 and 0.001 are exact."""
    return lr / (1 / gamma) ** times


def check_gamma(gamma: float) -> None:
    """Check the factor by which a learning rate falls.

    Raises:
        ValueError: it is not above 0.
    """
    if gamma <= 0:
        raise ValueError(f"recipe.schedule.gamma={gamma} must be above 0")


class MilestoneSchedule(Schedule):
    """The paper's schedule: the learning rate falls at milestones, after a warm-up.

    A net with n >= `warmup_from_n` starts at `warmup_lr` until its training error falls below
    `warmup_error` percent (Sec. 4.2: 0.01 until 80%, for n = 18). Whether the warm-up still lasts
    is the schedule's only state.

    Args:
        n: the paper's n; None for a net that has none, which is never warmed up.
        iterations: length of the run.
        lr: learning rate before the first milestone.
        milestones: fractions of the run, 0 to 1.
        gamma: factor at each milestone.
        warmup_from_n: smallest n that is warmed up; None for no warm-up.
        warmup_lr: upper limit of the learning rate during the warm-up.
        warmup_error: training error in percent that ends the warm-up.
        warmup_iterations: a warm-up of another kind, which detectors need: during so many
            iterations the learning rate rises linearly.

    Raises:
        ValueError: milestones that are not fractions, or a gamma that is not above 0.
    """

    def __init__(
        self,
        n: int | None,
        iterations: int,
        lr: float,
        milestones: Sequence[float],
        gamma: float,
        warmup_from_n: int | None,
        warmup_lr: float,
        warmup_error: float,
        warmup_iterations: int = 0,
    ) -> None:
        check_gamma(gamma)
        if not all(0 <= fraction <= 1 for fraction in milestones):
            raise ValueError(
                f"recipe.schedule.milestones={list(milestones)} must be fractions of the run: 0.5 "
                f"is iteration {iterations // 2} of {iterations}"
            )
        self.lr, self.gamma, self.warmup_iterations = lr, gamma, warmup_iterations
        self.milestones = [round(fraction * iterations) for fraction in milestones]
        self.warmup_lr, self.warmup_error = warmup_lr, warmup_error
        self.warming_up = n is not None and warmup_from_n is not None and n >= warmup_from_n

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of iteration 0, 1, ..."""
        passed = sum(iteration >= milestone for milestone in self.milestones)
        lr = reduced_lr(self.lr, self.gamma, passed)
        if iteration < self.warmup_iterations:
            lr *= (iteration + 1) / self.warmup_iterations
        return min(lr, self.warmup_lr) if self.warming_up else lr

    def on_train_error(self, error: float) -> None:
        """End the warm-up if the training error of the latest iterations is low enough."""
        self.warming_up = self.warming_up and error >= self.warmup_error

    def state_dict(self) -> dict[str, bool]:
        """Return the state to save in a checkpoint."""
        return {"warming_up": self.warming_up}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Restore the state of `state_dict`."""
        self.warming_up = state["warming_up"]


class PlateauSchedule(Schedule):
    """The learning rate falls whenever the validation error stops falling (Sec. 3.4).

    It has stopped falling when `patience` evaluations in a row did not improve the best error by
    `threshold`. The paper gives neither number. torch's ReduceLROnPlateau needs the optimizer,
    whose learning rate it overwrites; here the LightningModule does that, for eager and captured
    steps alike.

    Args:
        lr: learning rate before the first reduction.
        gamma: factor at each reduction.
        patience: evaluations without improvement before a reduction.
        threshold: smallest improvement that counts, in percentage points.
        max_reductions: after so many the learning rate stays; None for no limit.
        n, iterations: not used; every schedule is given them.

    Raises:
        ValueError: a patience below 1, or a gamma that is not above 0.
    """

    def __init__(
        self,
        lr: float,
        gamma: float,
        patience: int,
        threshold: float,
        max_reductions: int | None = None,
        n: int | None = None,
        iterations: int | None = None,
    ) -> None:
        check_gamma(gamma)
        if patience < 1:
            raise ValueError(f"recipe.schedule.patience={patience} must be at least 1")
        self.lr, self.gamma, self.patience, self.threshold = lr, gamma, patience, threshold
        self.max_reductions = sys.maxsize if max_reductions is None else max_reductions
        self.best = float("inf")
        self.waited = 0
        self.reductions = 0

    def __call__(self, iteration: int) -> float:
        """Return the learning rate; it is the same for all iterations between two evaluations."""
        return reduced_lr(self.lr, self.gamma, self.reductions)

    def on_eval_error(self, error: float) -> None:
        """Count an evaluation, and reduce the learning rate if it is time."""
        if error < self.best - self.threshold:
            self.best, self.waited = error, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            self.reductions, self.waited = min(self.reductions + 1, self.max_reductions), 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"best": self.best, "waited": self.waited, "reductions": self.reductions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.best, self.waited = state["best"], state["waited"]
        self.reductions = state["reductions"]


class TorchSchedule(Schedule):
    """A learning rate by iteration that one of torch's schedulers gives, such as a cosine.

    It has no state to save: a resumed run steps to its iteration again.

    Args:
        lr: learning rate that the scheduler starts from.
        scheduler: makes the scheduler from an optimizer.
    """

    def __init__(self, lr: float, scheduler: Callable[[Optimizer], LRScheduler]) -> None:
        # Of nothing: the LightningModule sets the learning rate of what is trained.
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr)
        self.scheduler = scheduler(self.optimizer)
        self.iteration = 0

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of an iteration that is not before that of the last call."""
        while self.iteration < iteration:
            self.optimizer.step()  # the scheduler warns otherwise
            self.scheduler.step()
            self.iteration += 1
        return float(self.optimizer.param_groups[0]["lr"])


def make_schedule(options: dict[str, Any], n: int | None, iterations: int) -> Any:
    """Return the schedule that `recipe.schedule` describes.

    Args:
        options: its `_target_`, a schedule of this module or one of torch's schedulers, and its
            arguments; for torch's also `lr`.
        n: the paper's n; None for a net that has none.
        iterations: length of the run.

    Raises:
        ValueError: the scheduler needs other arguments, or more than the iteration.
    """
    target = locate(options["_target_"])
    if target is ReduceLROnPlateau:
        raise ValueError(
            "ReduceLROnPlateau needs an error: set recipe=imagenet_plateau, or recipe.schedule."
            "_target_=src.training.lr_schedule.PlateauSchedule +recipe.schedule.patience=12 "
            "+recipe.schedule.threshold=0.1"
        )
    try:
        if isinstance(target, type) and issubclass(target, LRScheduler):
            given = {key: value for key, value in options.items() if key not in ("_target_", "lr")}
            return TorchSchedule(options["lr"], partial(target, **given))
        return instantiate(options, n=n, iterations=iterations, _convert_="all")
    except (TypeError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, TypeError):
            raise
        raise ValueError(f"{cause}: set its arguments with +recipe.schedule.NAME=VALUE") from error
