"""The training stream: batch i is a pure function of the seed and i.

Permutations of the training images, one per pass, are laid end to end and cut into batches of exactly
`batch_size`, so a batch may straddle two passes and none is smaller. Order and augmentation come from generators
rng_for by the seed and a counter, never from global random state: going on at iteration i needs nothing but i.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
# What a seed is used for; each use has generators of its own.
SPLIT, ORDER, AUGMENTATION = range(3)


def rng_for(seed: int, *key: int) -> np.random.Generator:
    """The random generator of one use of the seed, say `rng_for(seed, ORDER, i)` for pass i."""
    return np.random.default_rng([seed, *key])


@lru_cache(maxsize=2)
def permutation(seed: int, i: int, images: int) -> np.ndarray:
    """The order of pass i. A function of the module, so that a stream can be sent to worker processes."""
    return rng_for(seed, ORDER, i).permutation(images)


def train_val_split(images: int, val_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the training and of the validation images, each in order.

    Raises ValueError if the validation set takes them all.
    """
    if not 0 <= val_images < images:
        raise ValueError(f"data.val_images={val_images} must be from 0 to {images - 1}")
    order = rng_for(seed, SPLIT).permutation(images)
    return np.sort(order[val_images:]), np.sort(order[:val_images])


def check_batch_divides(batch_size: int | None, world: int) -> None:
    """Raises ValueError if a batch does not divide among `world` processes."""
    if batch_size is not None and batch_size % world:
        raise ValueError(
            f"recipe.batch_size={batch_size} is the batch of all devices together: "
            f"it must be a multiple of {world}, their number"
        )


def check_enough_images(images: int, world: int) -> None:
    """Raises ValueError if not each of `world` processes has an image to test."""
    if images < world:
        raise ValueError(f"{images} images are too few to be tested on {world} devices: take fewer devices")


class Stream:
    """Batches `0 .. iterations - 1` of the run; process `rank` of `world` takes its slice of each.

    `make(indices, rng, share)` makes that share of the batch of these training images, drawing from `rng` for the
    whole batch. The stream's state is one number, the next iteration.
    """

    def __init__(
        self,
        make: Callable[[Tensor, np.random.Generator, slice], Batch],
        images: int,
        batch_size: int,
        iterations: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert batch_size % world == 0, (batch_size, world)
        self.make, self.images, self.batch_size, self.iterations = make, images, batch_size, iterations
        self.seed, self.next = seed, 0
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)

    def indices(self, iteration: int) -> np.ndarray:
        """The training images of a batch, [batch_size], of all processes."""
        start = iteration * self.batch_size
        first, last = start // self.images, (start + self.batch_size - 1) // self.images
        order = np.concatenate([permutation(self.seed, i, self.images) for i in range(first, last + 1)])
        return order[start - first * self.images :][: self.batch_size]

    def batch(self, iteration: int) -> Batch:
        """Images float32 [batch_size / world, 3, H, W] and labels int64 [batch_size / world]."""
        rng = rng_for(self.seed, AUGMENTATION, iteration)
        return self.make(torch.from_numpy(self.indices(iteration)), rng, self.share)

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[Batch]:
        for iteration in range(self.next, self.iterations):
            self.next = iteration + 1
            yield self.batch(iteration)

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["iteration"]
