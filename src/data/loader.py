"""Batches of ImageNet's images, made by worker processes ahead of their use.

Normalization is left to the training device: a batch of uint8 is a quarter of its float32 size.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.image_reader import ImageSubset, LoadedBatch
from src.data.sampler import Batch, TrainingStream
from src.data.transforms import (
    CROP_SIZE,
    RandomResizedCrop,
    RandomScaleCrop,
    crop_and_resize,
    pca_color_noise,
)

# Yields a batch for each item, in order; `ImageNet` chooses how many processes make them.
ReadBatches = Callable[[Callable[[Any], LoadedBatch], Sequence[Any]], Iterator[tuple[Tensor, ...]]]


class TrainBatchMaker:
    """Makes augmented training batches: images, labels and color noise.

    A skipped image is replaced by the next one that can be decoded.

    Args:
        images: The training images.
        crop: Random crop of each image.
        color_noise: Standard deviation of the PCA color noise.
    """

    def __init__(
        self, images: ImageSubset, crop: RandomScaleCrop | RandomResizedCrop, color_noise: float
    ) -> None:
        self.images, self.crop, self.color_noise = images, crop, color_noise

    def __call__(self, indices: Tensor, rng: np.random.Generator, rank_slice: slice) -> LoadedBatch:
        """Return uint8 [n, 224, 224, 3], labels [n] and color noise [n, 3] of one process."""
        # Random numbers of the global batch: those of an image do not depend on the world size.
        draws = rng.random((len(indices), 1 + self.crop.num_draws))
        noise = pca_color_noise(rng, len(indices), self.color_noise)

        # Decoding is what takes the time, and only this process's images are decoded.
        skipped: list[str] = []
        per_image = zip(indices[rank_slice].tolist(), draws[rank_slice], strict=True)
        images = [self._augmented(index, numbers, skipped) for index, numbers in per_image]
        return LoadedBatch((*_collate(images), noise[rank_slice]), skipped)

    def _augmented(self, index: int, draws: np.ndarray, skipped: list[str]) -> tuple[Tensor, int]:
        for i in range(len(self.images)):
            # The random numbers stay those of the image that is replaced.
            loaded = self.images.load((index + i) % len(self.images), skipped)
            if loaded:
                image, label = loaded
                box = self.crop.box(draws[1:], *image.shape[1:])
                return crop_and_resize(image, box, flip=draws[0] < 0.5), label
        raise ValueError(
            f"none of the {len(self.images):,} training images can be read: {skipped[-1]}"
        )


def _collate(images: list[tuple[Tensor, int]]) -> Batch:
    """Copy images [3, 224, 224] into one tensor [n, 224, 224, 3]."""
    pixels = torch.empty((len(images), CROP_SIZE, CROP_SIZE, 3), dtype=torch.uint8)
    for place, (image, _) in zip(pixels, images, strict=True):
        place.copy_(image.permute(1, 2, 0))
    return pixels, torch.tensor([label for _, label in images], dtype=torch.int64)


class TrainLoader:
    """Iterates over the batches of a training stream, which workers make ahead of it."""

    def __init__(self, stream: TrainingStream, read_batches: ReadBatches) -> None:
        self.stream, self.read_batches = stream, read_batches
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        iterations = range(self.stream.next_iteration, len(self.stream))
        batches = self.read_batches(self.stream.batch, iterations)
        for iteration, batch in zip(iterations, batches, strict=True):
            # The state follows the batches that were used, not those that workers have ready.
            self.stream.next_iteration = iteration + 1
            yield batch


class EvalLoader:
    """Iterates over batches of images for evaluation, in order, without augmentation.

    Args:
        make_batch: Makes the batch of some indices.
        index_batches: The indices of each batch.
        read_batches: Makes the batches in worker processes.
    """

    def __init__(
        self,
        make_batch: Callable[[range], LoadedBatch],
        index_batches: list[range],
        read_batches: ReadBatches,
    ) -> None:
        self.make_batch, self.index_batches = make_batch, index_batches
        self.read_batches = read_batches

    def __len__(self) -> int:
        return len(self.index_batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        batches = self.read_batches(self.make_batch, self.index_batches)
        return (batch for batch in batches if len(batch[0]))  # all images may have been skipped


class _BatchDataset(Dataset):
    def __init__(self, make_batch: Callable[[Any], Any]) -> None:
        self.make_batch = make_batch

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.make_batch(item)
        except (OSError, ValueError) as error:
            return error  # raised by `prefetch`; DataLoader would bury its text in a traceback


def prefetch(
    make_batch: Callable[[Any], Any], items: Sequence[Any], workers: int, pin: bool = False
) -> Iterator[Any]:
    """Yield `make_batch(item)` for each item, in order, made ahead by worker processes.

    The number of workers changes no batch.

    Args:
        make_batch: Depends on nothing but the item, and can be pickled. Its OSErrors and
            ValueErrors are raised here.
        items: One for each batch.
        workers: Number of processes; with 0 this process makes the batches.
        pin: Copy batches into pinned memory, for a GPU.
    """
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin}
    # DataLoader draws from a generator; the global one must give the same numbers to the net
    # whether or not there is an evaluation.
    options["generator"] = torch.Generator()
    if sys.platform == "linux":
        options["worker_init_fn"] = _ignore_sigterm_from_outside

    dataset = _BatchDataset(make_batch)
    for batch in DataLoader(dataset, batch_size=None, sampler=items, **options):
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _ignore_sigterm_from_outside(_: int) -> None:
    """Let SIGTERM end a worker only if it comes from the process that trains.

    SLURM and torchrun send it to all processes, and training needs its workers until it has saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm_from_parent, daemon=True).start()


def _exit_on_sigterm_from_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
