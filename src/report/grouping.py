"""Group rows, runs and other items."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from src.tables import Row

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Group items by a key, in the order in which they come; they need not be sorted."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def group_seeds(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows of one data set that differ in nothing but the seed.

    Batch norm sees fewer images on several devices, although the config is that of one device.
    """
    keys = ("config", "protocol", "batch_norm_images")
    return list(group_by(rows, lambda row: tuple(map(row.get, keys))).values())
