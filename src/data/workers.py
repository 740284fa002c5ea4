"""Worker processes that make batches ahead of their use; how many there are changes no batch."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class _Made(Dataset):
    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.make(item)
        except (OSError, ValueError) as error:  # handed on as it is: DataLoader buries its text in a traceback
            return error


def prefetch(make: Callable[[Any], Any], items: Sequence[Any], workers: int, pin: bool = False) -> Iterator[Any]:
    """`make(item)` for each item, in order, made by `workers` processes; by this one if there are none.

    `make` must depend on nothing but the item, and be picklable. Its OSErrors and ValueErrors are raised here.
    """
    # A generator of its own, as DataLoader draws from it: evaluating must not move the net's random numbers.
    options = {"num_workers": workers, "pin_memory": pin, "generator": torch.Generator()}
    if sys.platform == "linux":
        options["worker_init_fn"] = _outlive_sigterm
    for made in DataLoader(_Made(make), batch_size=None, sampler=items, **options):
        if isinstance(made, Exception):
            raise made
        yield made


def _outlive_sigterm(_: int) -> None:
    """Leaves SIGTERM to the process that trains and may want to save: SLURM and torchrun send it to this one, too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
