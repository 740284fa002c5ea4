"""Measure the time that a run trains and evaluates, over all its resumed parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from src.training.callbacks.base import RunCallback


class Stopwatch(RunCallback):
    """Comes first among the callbacks, so that what the others do counts to the right phase.

    Attributes:
        train_seconds: time spent training, writing checkpoints included.
        eval_seconds: time spent evaluating.
    """

    def __init__(self) -> None:
        self.train_seconds = self.eval_seconds = 0.0
        self.since = time.perf_counter()

    def on_train_start(self, *_: object) -> None:
        """Start to measure."""
        self.since = time.perf_counter()

    def on_validation_start(self, *_: object) -> None:
        """End a stretch of training."""
        self.train_seconds += self._lap()

    def on_validation_end(self, *_: object) -> None:
        """End an evaluation."""
        self.eval_seconds += self._lap()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count a block within training as evaluation."""
        self.train_seconds += self._lap()
        yield
        self.eval_seconds += self._lap()

    def _lap(self) -> float:
        """Return the seconds since the last lap."""
        before, self.since = self.since, time.perf_counter()
        return self.since - before

    def state_dict(self) -> dict[str, float]:
        """Return the times so far."""
        self.train_seconds += self._lap()
        return {"train_seconds": self.train_seconds, "eval_seconds": self.eval_seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from the times of a checkpoint."""
        self.train_seconds, self.eval_seconds = state["train_seconds"], state["eval_seconds"]
