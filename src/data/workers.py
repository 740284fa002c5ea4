"""Worker processes that make batches ahead of their use; how many there are changes no batch."""

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


def made_ahead(make: Callable[[Any], Any], items: Sequence[Any], workers: int, pin: bool = False) -> Iterator[Any]:
    """`make(item)` for each item, in order, made by `workers` processes; by this one if there are none.

    `make` must depend on nothing but the item, and be picklable. Its OSErrors and ValueErrors are raised here.
    """
    # A generator of its own, as DataLoader draws from it: evaluating must not move the net's random numbers.
    options = {"num_workers": workers, "pin_memory": pin, "generator": torch.Generator()}
    for made in DataLoader(_Made(make), batch_size=None, sampler=items, **options):
        if isinstance(made, Exception):
            raise made
        yield made
