"""Datasets held in memory: one uint8 tensor of images on the training device."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.image_datamodule import ImageDataModule
from src.data.sampler import (
    Batch,
    TrainingStream,
    check_batch_divides,
    check_enough_images,
    rank_and_world_size,
    train_val_split,
)
from src.data.transforms import CropParams, crop_and_flip, nchw, normalize, random_crop_params

TEST_BATCH = 500  # images of a process
GPU_TEST_BATCH = 5000  # smaller ones leave most of a GPU idle
NORMALIZATIONS = ("pixel", "channel_mean", "channel")


class ImagesInMemory(ImageDataModule):
    """Splits, normalization and augmentation of a dataset; a subclass reads it.

    Args:
        val_images: Training images held out for validation, chosen by the seed (45k/5k in
            Sec. 4.2); 0 trains on all.
        normalization: "pixel" subtracts the mean of each pixel over the training images and does
            not divide, as in the paper; "channel_mean" subtracts each channel's mean; "channel"
            also divides by its standard deviation.
        padding: Pixels of zeros on each side, out of which images are cropped at random.
        flip: Whether to flip half the images horizontally.
        seed: Seed of the run.
        batch_size: Images per iteration over all processes; needed for training only.
        iterations: Length of the run; needed for training only.
        num_classes: Number of classes, as the net has outputs; None leaves that to the net.

    Raises:
        ValueError: If `normalization` has an invalid value.
    """

    protocols = ("center",)  # of evaluation

    def __init__(
        self,
        val_images: int,
        normalization: str,
        padding: int,
        flip: bool,
        seed: int,
        batch_size: int | None = None,
        iterations: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(val_images, seed, batch_size, iterations)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"data.normalization={normalization} is not one of {', '.join(NORMALIZATIONS)}"
            )
        self.normalization = normalization
        self.padding, self.flip, self.num_classes = padding, flip, num_classes
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}  # images and labels

    @abstractmethod
    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return training images uint8 [N, H, W, 3] and labels int64 [N], then the test set's."""

    @property
    def test_labels(self) -> np.ndarray:
        """The labels of the test set, in order."""
        return self.splits["test"][1].numpy()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images, once.

        Raises:
            ValueError: If no image is left for training, the batch does not divide among the
                processes, or there are not as many classes as the config says.
        """
        if self.splits:
            return  # Lightning calls it for fit and for test
        check_batch_divides(self.batch_size, rank_and_world_size(self.trainer)[1])
        images, labels, test_images, test_labels = self.read()
        classes = 1 + int(max(labels.max(), test_labels.max()))
        # More outputs than classes would do harm as well: the name of a run does not tell them.
        if self.num_classes not in (None, classes):
            raise ValueError(
                f"data.num_classes={self.num_classes}, but the labels are of {classes} classes: "
                f"set data.num_classes={classes}"
            )
        self.image_shape = (3, *images.shape[1:3])
        # Stored in checkpoints: a run must not resume on other images.
        self.fingerprint = fingerprint(images, labels, test_images, test_labels)

        train, val = train_val_split(len(images), self.val_images, self.seed)
        self.train_images = len(train)
        splits = {"train": (images[train], labels[train]), "test": (test_images, test_labels)}
        if self.val_images:
            splits["val"] = images[val], labels[val]
        self.mean, self.std = self._statistics(splits["train"][0])
        self.splits = {
            split: (torch.from_numpy(x), torch.from_numpy(y)) for split, (x, y) in splits.items()
        }

    def _statistics(self, images: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return the mean, [H, W, 3] or [3], and the standard deviation [3] if it is used."""
        mean = torch.from_numpy(images.mean(0)).float()
        if self.normalization == "pixel":
            return mean, None
        channel_mean = mean.double().mean((0, 1)).float()
        if self.normalization == "channel_mean":
            return channel_mean, None
        # One channel at a time: NumPy makes a float64 copy.
        std = torch.tensor([images[..., channel].std() for channel in range(3)]).float()
        return channel_mean, std

    def train_dataloader(self) -> TrainingStream:
        """Return the training stream from its first iteration; `augment` completes its batches.

        A batch is one tensor, int64 [4, N]: the index of each image, its crop and its flip.
        """
        self.train_split = images, *_ = self._on_device("train")

        def make_batch(
            indices: Tensor, rng: np.random.Generator, rank_slice: slice
        ) -> tuple[Tensor]:
            params = random_crop_params(rng, len(indices), self.padding, self.flip)
            choices = torch.stack([indices, *params])[:, rank_slice]
            # One small copy for all four; the images are on the device already.
            return (choices.to(images.device, non_blocking=True),)

        return self.training_stream(make_batch)

    def augment(self, *batch: Tensor) -> Batch:
        """Return the images float32 [N, 3, H, W] and labels [N] that a training batch chooses."""
        images, labels, mean, std = self.train_split
        indices, top, left, flip = batch[0]
        # The paper does not state the order: normalized first, the padding is the mean color.
        chosen = normalize(images.index_select(0, indices), mean, std)
        chosen = crop_and_flip(chosen, CropParams(top, left, flip.bool()), self.padding)
        return nchw(chosen), labels.index_select(0, indices)

    def transfer_batch_to_device(self, batch: Any, *_: object) -> Any:
        """Return the batch, which is on the device already."""
        return batch

    def eval_loader(self, split: str) -> "InMemoryEvalLoader":
        """Return the images of a split in order, without augmentation."""
        return InMemoryEvalLoader(*self._on_device(split), *rank_and_world_size(self.trainer))

    def _on_device(self, split: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return images, labels, mean and standard deviation on the training device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, labels = (tensor.to(device) for tensor in self.splits[split])
        std = None if self.std is None else self.std.to(device)
        return images, labels, self.mean.to(device), std


def fingerprint(*arrays: np.ndarray) -> str:
    """Hash everything that arrays hold, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        # CIFAR-10's images are a transposed view, which hashlib refuses.
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class InMemoryEvalLoader:
    """Iterates over the images of a split in order, without augmentation.

    Each process gets every `world_size`-th image, so that each image is evaluated once.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int64 [N].
        mean: As `normalize` takes it.
        std: As `normalize` takes it.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor,
        std: Tensor | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_enough_images(len(images), world_size)
        self.images, self.labels = images[rank::world_size], labels[rank::world_size]
        self.mean, self.std = mean, std
        self.batch_size = GPU_TEST_BATCH if images.is_cuda else TEST_BATCH

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        size = self.batch_size
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield nchw(normalize(images, self.mean, self.std)), labels
