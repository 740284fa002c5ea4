"""A clock for training iterations, which waits for the device."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from src.training.cuda_graph import CUDAGraphStep

BATCH_SIZE = 128  # of every iteration that is timed
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Clock(pl.Callback):
    """Times `iterations` iterations after a warm-up: those of a loop, or of a run as its callback.

    Attributes:
        total: iterations until the clock stops, including the warm-up.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        # The first iterations choose kernels and compile. A CUDA graph is captured in the one after
        # its eager calls, however few iterations are timed.
        self.warm_up = max(CUDAGraphStep.EAGER_CALLS + 1, min(10, iterations))
        self.total = self.warm_up + iterations
        self.ticks = 0
        self.started = self.stopped = 0.0

    def on_train_batch_end(self, *_: object) -> None:
        """Count a finished iteration."""
        self.ticks += 1
        if self.ticks == self.warm_up:
            self.started = _now()
        elif self.ticks == self.total:
            self.stopped = _now()

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield as many batches as the clock counts; the code between two of them is timed."""
        for batch in batches:
            yield batch
            self.on_train_batch_end()
            if self.ticks == self.total:
                break

    @property
    def microseconds(self) -> float:
        """Duration of a timed iteration."""
        return 1e6 * (self.stopped - self.started) / self.iterations

    @property
    def images_per_second(self) -> float:
        """Speed of the timed iterations."""
        return self.iterations * BATCH_SIZE / (self.stopped - self.started)


def _now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()  # kernels run asynchronously: wait until they are done
    return time.perf_counter()
