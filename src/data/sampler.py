"""The training stream: batch i is a pure function of the seed and i.

Permutations of the training images, one per epoch, are laid end to end and cut into batches of
exactly `batch_size`: a batch may straddle two epochs, and none is smaller. Order and augmentation
draw from generators seeded with the run's seed and a counter, never from global random state, so
resuming at iteration i needs nothing but i.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Batch = tuple[Tensor, Tensor]  # images and labels
# What the seed is used for; each use has its own generators, so that none disturbs another.
SPLIT, ORDER, AUGMENTATION, STEP = range(4)


def rng_for(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of one use of the seed, such as `rng_for(seed, ORDER, epoch)`."""
    return np.random.default_rng([seed, *key])


@lru_cache(maxsize=2)  # a batch touches two epochs at most, unless it is larger than an epoch
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Return the order of the training images in one epoch, int64 [num_images]."""
    # Not a method of the stream: the cache of a method could not be pickled for worker processes.
    return rng_for(seed, ORDER, epoch).permutation(num_images)


def train_val_split(num_images: int, val_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split image indices at random into training and validation indices, each in order.

    Raises:
        ValueError: If no image is left for training.
    """
    if not 0 <= val_images < num_images:
        raise ValueError(f"data.val_images={val_images} must be from 0 to {num_images - 1}")
    order = rng_for(seed, SPLIT).permutation(num_images)
    return np.sort(order[val_images:]), np.sort(order[:val_images])


def rank_and_world_size(trainer: "Trainer | None") -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def check_batch_divides(batch_size: int | None, world_size: int) -> None:
    """Check that the global batch divides evenly among the processes.

    Raises:
        ValueError: If it does not.
    """
    if batch_size is not None and batch_size % world_size:
        raise ValueError(
            f"recipe.batch_size={batch_size} is the batch of all devices together: "
            f"it must be a multiple of {world_size}, their number"
        )


def check_enough_images(num_images: int, world_size: int) -> None:
    """Check that each process has at least one image to evaluate.

    Raises:
        ValueError: If there are fewer images than processes.
    """
    if num_images < world_size:
        raise ValueError(
            f"{num_images} images are too few to be tested on {world_size} devices: "
            "use fewer devices"
        )


class TrainingStream:
    """Iterate over the batches 0 .. iterations - 1 of a run.

    The state is one number, the next iteration.

    Args:
        make_batch: Called as `make_batch(indices, rng, rank_slice)`. It draws the random numbers of
            the global batch from `rng`, so that they do not depend on the number of processes, and
            returns the part `rank_slice` of the batch.
        num_images: Number of training images.
        batch_size: Images per iteration over all processes.
        iterations: Number of batches.
        seed: Seed of the order and of the augmentation.
        rank: This process, from 0 to `world_size` - 1.
        world_size: Number of processes, which must divide `batch_size`.
    """

    def __init__(
        self,
        make_batch: Callable[[Tensor, np.random.Generator, slice], Any],
        num_images: int,
        batch_size: int,
        iterations: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.make_batch, self.num_images = make_batch, num_images
        self.batch_size, self.iterations = batch_size, iterations
        self.seed, self.next_iteration = seed, 0
        per_rank = batch_size // world_size
        self.rank_slice = slice(rank * per_rank, (rank + 1) * per_rank)

    def indices(self, iteration: int) -> np.ndarray:
        """Return the indices of the images in a global batch, int64 [batch_size]."""
        start = iteration * self.batch_size
        first = start // self.num_images
        last = (start + self.batch_size - 1) // self.num_images
        epochs = [epoch_order(self.seed, i, self.num_images) for i in range(first, last + 1)]
        return np.concatenate(epochs)[start - first * self.num_images :][: self.batch_size]

    def batch(self, iteration: int) -> Any:
        """Return this process's part of a batch, as `make_batch` makes it."""
        rng = rng_for(self.seed, AUGMENTATION, iteration)
        return self.make_batch(torch.from_numpy(self.indices(iteration)), rng, self.rank_slice)

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[Any]:
        for iteration in range(self.next_iteration, self.iterations):
            # Counted before the batch is used: a checkpoint written after the step resumes past it.
            self.next_iteration = iteration + 1
            yield self.batch(iteration)

    def state_dict(self) -> dict[str, int]:
        """Return the next iteration, for a checkpoint."""
        return {"iteration": self.next_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the iteration of a checkpoint."""
        self.next_iteration = state["iteration"]
