"""What datasets of images with objects offer: boxes for detection, masks for segmentation."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from src.data.examples import Example, ObjectBatch, batched, cropped, mirror, resized, to_learn
from src.data.image_datamodule import ImageDataModule
from src.data.sampler import (
    TrainingStream,
    check_batch_divides,
    check_enough_images,
    rank_and_world_size,
    train_val_split,
)

EVAL_BATCH = 8  # images of a process
STATISTICS_IMAGES = 200  # training images whose mean and standard deviation normalize all


class ObjectData(ImageDataModule):
    """Splits, training stream and evaluation of images with objects; a subclass reads them.

    Args:
        classes: Names of the classes; their labels are 1, 2, ...
        tasks: The tasks that the labels serve.
        min_size: Pixels of the shorter side to which a detector resizes an image.
        max_size: At most so many pixels of the longer side.
        flip: Whether to flip half the training images horizontally.
        val_images: Training images held out for validation; 0 trains on all.
        seed: Seed of the run.
        batch_size: Images per iteration over all processes; needed for training only.
        iterations: Length of the run; needed for training only.
        num_classes: Number of classes, as the net has outputs before they are replaced.
        metric: What a detector reports: `coco`, or also VOC's average precision, by 11 points with
            `voc07` and by all points with `voc`.
        crop: Side length of a random square of each training image to train on, where the task is
            not detection; 0 trains on complete images.
        scales: Smallest and largest shorter side to which a training image is resized before it is
            cropped; None for none.

    Raises:
        ValueError: `scales` or `crop` has an invalid value.

    Attributes:
        category_ids: The number of each class in the dataset's own files.
        sizes: The number of images of `train`, before any are held out, and of `test`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        tasks: Sequence[str],
        min_size: int,
        max_size: int,
        flip: bool,
        val_images: int,
        seed: int,
        batch_size: int | None = None,
        iterations: int | None = None,
        num_classes: int | None = None,
        metric: str = "coco",
        crop: int = 0,
        scales: Sequence[int] | None = None,
    ) -> None:
        super().__init__(val_images, seed, batch_size, iterations)
        if scales is not None and (len(scales) != 2 or not 1 <= scales[0] <= scales[1]):
            raise ValueError(f"data.scales={list(scales)} must be [smallest, largest], in pixels")
        if crop < 0:
            raise ValueError(f"data.crop={crop} must be a side length in pixels, or 0")
        self.metric, self.crop, self.scales = metric, crop, scales
        self.classes, self.tasks = [*classes], [*tasks]
        self.category_ids = [*range(1, len(self.classes) + 1)]
        self.min_size, self.max_size, self.flip = min_size, max_size, flip
        self.indices: dict[str, np.ndarray] = {}  # of each split, in what `read` takes

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """The number of training images, held-out ones included, and of test images."""

    @abstractmethod
    def read(self, split: str, index: int) -> Example:
        """Return an image of `train` or `test` with its objects.

        Args:
            split: `train`, held-out images included, or `test`.
            index: From 0 on.
        """

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """Yield what tells these images and objects from others, for the fingerprint."""

    def setup(self, stage: str | None = None) -> None:
        """Split the images, once.

        Raises:
            ValueError: No image is left for training, or the batch does not divide among the
                processes.
        """
        if self.indices:
            return  # Lightning calls it for fit and for test
        check_batch_divides(self.batch_size, rank_and_world_size(self.trainer)[1])
        images, test_images = self.sizes
        train, val = train_val_split(images, self.val_images, self.seed)
        self.indices = {"train": train, "val": val, "test": np.arange(test_images)}
        self.train_images = len(train)
        self.mean, self.std = self._statistics()
        digest = hashlib.sha256()
        for part in self.content():
            digest.update(part)
        self.fingerprint = digest.hexdigest()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each channel, [3], in 0 to 255."""
        # How often each value occurs, as the images themselves may not fit into memory.
        counts = torch.zeros(3, 256, dtype=torch.float64)
        for position in range(min(STATISTICS_IMAGES, self.train_images)):
            image = self.example("train", position).image
            counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in image])
        values, pixels = torch.arange(256), counts.sum(1)
        mean = counts @ values.double() / pixels
        variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (pixels - 1)
        return mean.float(), variance.sqrt().float()

    @property
    def test_labels(self) -> np.ndarray:
        """The indices of the test images: there is no single label for an image."""
        return self.indices["test"]

    def example(self, split: str, position: int) -> Example:
        """Return an image of a split by its position in it."""
        return self.read("test" if split == "test" else "train", int(self.indices[split][position]))

    def train_dataloader(self) -> TrainingStream:
        """Return the training stream from its first iteration."""

        def make_batch(indices: Tensor, rng: np.random.Generator, rank_slice: slice) -> ObjectBatch:
            # Drawn for all processes, so that it does not depend on their number.
            flips, corners = rng.random(len(indices)) < 0.5, rng.random((len(indices), 2))
            smallest, largest = self.scales or (0, 0)
            sides = rng.integers(smallest, largest + 1, len(indices))
            numbers = flips[rank_slice], corners[rank_slice], sides[rank_slice]
            examples = []
            for index, *draws in zip(indices[rank_slice].tolist(), *numbers, strict=True):
                flip, corner, side = draws
                example = to_learn(self.example("train", index))
                if self.scales:
                    example = resized(example, int(side))
                if self.crop:
                    example = cropped(example, self.crop, corner)
                examples.append(mirror(example) if flip and self.flip else example)
            return batched(examples)

        return self.training_stream(make_batch)

    def eval_loader(self, split: str) -> "ObjectEvalLoader":
        """Return this process's part of a split, in order."""
        return ObjectEvalLoader(self, split, *rank_and_world_size(self.trainer))


class ObjectEvalLoader:
    """Iterates over the images of a split in order, every `world_size`-th for each process."""

    def __init__(self, data: ObjectData, split: str, rank: int, world_size: int) -> None:
        count = len(data.indices[split])
        check_enough_images(count, world_size)
        self.data, self.split = data, split
        self.positions = range(rank, count, world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / EVAL_BATCH)

    def __iter__(self) -> Iterator[ObjectBatch]:
        for first in range(0, len(self.positions), EVAL_BATCH):
            positions = self.positions[first : first + EVAL_BATCH]
            yield batched([self.data.example(self.split, position) for position in positions])
