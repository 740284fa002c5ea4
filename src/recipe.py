"""Rates of learning: functions of the iteration (Sec. 4.2), or of how the error falls (Sec. 3.4)."""

from collections.abc import Sequence


def step_rate(iteration: int, iterations: int, lr: float, drops: Sequence[float], divisor: float) -> float:
    """`lr`, divided once for each drop that iteration 0, 1, ... has reached; drops are fractions of the run."""
    return lr / divisor ** sum(iteration >= round(drop * iterations) for drop in drops)


class Schedule:
    """The paper's schedule: drops at fixed fractions of the run, and a warm-up for the deepest nets.

    A net of n >= `warmup_from_n` starts at the rate `warmup_lr` until its training error, in percent, has been
    seen below `warmup_error` (Sec. 4.2: 0.01 until 80%, for n = 18). `warmup_from_n` None is never. Whether the
    warm-up still lasts is the schedule's only state.
    """

    def __init__(
        self,
        n: int | None,
        iterations: int,
        lr: float,
        drops: Sequence[float],
        divisor: float,
        warmup_from_n: int | None,
        warmup_lr: float,
        warmup_error: float,
    ) -> None:
        self.iterations, self.lr, self.drops, self.divisor = iterations, lr, drops, divisor
        self.warmup_lr, self.warmup_error = warmup_lr, warmup_error
        self.warming = n is not None and warmup_from_n is not None and n >= warmup_from_n

    def __call__(self, iteration: int) -> float:
        rate = step_rate(iteration, self.iterations, self.lr, self.drops, self.divisor)
        return min(rate, self.warmup_lr) if self.warming else rate

    def observe(self, train_error: float) -> None:
        """Tells the schedule the training error of the latest iterations, in percent."""
        self.warming = self.warming and train_error >= self.warmup_error

    def tested(self, error: float) -> None:
        """Is told the held-out error, which changes nothing here."""

    def state_dict(self) -> dict[str, bool]:
        return {"warming": self.warming}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        self.warming = state["warming"]


class Plateau:
    """The rate `lr`, divided by `divisor` whenever the held-out error stops falling (Sec. 3.4).

    It has stopped when `patience` evaluations in a row were none of them better than the best before by `threshold`
    points of percent; the paper does not say when. After `max_drops` of them the rate stays, None being no limit.
    """

    def __init__(
        self,
        lr: float,
        divisor: float,
        patience: int,
        threshold: float,
        max_drops: int | None = None,
        **_of_the_run: object,
    ) -> None:
        self.lr, self.divisor, self.patience, self.threshold = lr, divisor, patience, threshold
        self.max_drops = float("inf") if max_drops is None else max_drops
        self.best, self.waited, self.drops = float("inf"), 0, 0

    def __call__(self, iteration: int) -> float:
        return self.lr / self.divisor**self.drops

    def observe(self, train_error: float) -> None:
        """Is told the training error, which changes nothing here."""

    def tested(self, error: float) -> None:
        """Tells the schedule the error of an evaluation, in percent."""
        if error < self.best - self.threshold:
            self.best, self.waited = error, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            self.drops, self.waited = min(self.drops + 1, self.max_drops), 0

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "waited": self.waited, "drops": self.drops}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best, self.waited, self.drops = state["best"], state["waited"], state["drops"]
