"""Batches of ImageNet's images, made by worker processes ahead of their use.

Normalization is left to the training device: a batch of uint8 is a quarter of its float32 size.
"""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from src.data.image_subset import LoadedBatch
from src.data.sampler import TrainingStream


class Workers(NamedTuple):
    """The processes that make batches.

    Args:
        processes: Their number; with 0 this process makes the batches.
        pin: Copy batches into pinned memory, from which alone a GPU copies while it computes.
        reported: Messages about skipped images that were printed already; new ones are added.
    """

    processes: int
    pin: bool
    reported: set[str]


class TrainLoader:
    """Iterates over the batches of a training stream, which workers make ahead of it."""

    def __init__(self, stream: TrainingStream, workers: Workers) -> None:
        self.stream, self.workers = stream, workers
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        iterations = range(self.stream.next_iteration, len(self.stream))
        batches = read_batches(self.stream.batch, iterations, self.workers)
        for iteration, batch in zip(iterations, batches, strict=True):
            # The state follows the batches that were used, not those that workers have ready.
            self.stream.next_iteration = iteration + 1
            yield batch


@dataclass
class EvalLoader:
    """Iterates over images for evaluation, in order, without augmentation.

    Args:
        make_batch: Makes the batch of some indices.
        indices: The images of this process.
        workers: The processes that make the batches.
        batch_size: Images of a batch; the last one may be smaller.
    """

    make_batch: Callable[[range], LoadedBatch]
    indices: range
    workers: Workers
    batch_size: int = 100

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        starts = range(0, len(self.indices), self.batch_size)
        index_batches = [self.indices[start : start + self.batch_size] for start in starts]
        batches = read_batches(self.make_batch, index_batches, self.workers)
        return (batch for batch in batches if len(batch[0]))  # all images may have been skipped


def read_batches(
    make_batch: Callable[[Any], LoadedBatch], items: Sequence[Any], workers: Workers
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the batch of each item, in order, made ahead of its use.

    The number of workers changes no batch.

    Args:
        make_batch: Depends on nothing but the item, and can be pickled. Its OSErrors and
            ValueErrors are raised here.
        items: One for each batch.
        workers: The processes that make them.
    """
    results: Iterable[LoadedBatch | Exception] = DataLoader(
        items,  # type: ignore[arg-type]  # any sequence serves as a dataset
        batch_size=None,  # each item makes a batch already
        collate_fn=partial(_batch_or_error, make_batch),
        num_workers=workers.processes,
        pin_memory=workers.pin,
        # DataLoader draws from a generator; the global one must give the same numbers to the net
        # whether or not there is an evaluation.
        generator=torch.Generator(),
        # Only Linux tells which process a signal comes from.
        worker_init_fn=_ignore_sigterm_from_outside if sys.platform == "linux" else None,
    )
    for result in results:
        if isinstance(result, Exception):
            raise result
        # Once for each image, which training meets in every epoch.
        for message in result.skipped:
            if message not in workers.reported:
                workers.reported.add(message)
                total = len(workers.reported)
                tqdm.write(f"{message}: skipped, {total} so far", file=sys.stderr)
        yield result.batch


def _batch_or_error(make_batch: Callable[[Any], Any], item: Any) -> Any:
    try:
        return make_batch(item)
    except (OSError, ValueError) as error:
        return error  # raised by `read_batches`; DataLoader would bury its text in a traceback


def _ignore_sigterm_from_outside(_: int) -> None:
    """Let SIGTERM end a worker only if it comes from the process that trains.

    SLURM and torchrun send it to all processes, and training needs its workers until it has saved.
    """
    # Blocked, so that it waits for the thread, which can see who sent it; a handler could not.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm_from_parent, daemon=True).start()


def _exit_on_sigterm_from_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # sys.exit would end this thread alone
