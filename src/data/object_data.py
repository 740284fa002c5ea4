"""What datasets of images with objects offer: boxes for detection, masks for segmentation."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.image_datamodule import ImageDataModule
from src.data.sampler import (
    TrainingStream,
    check_batch_divides,
    check_enough_images,
    rank_and_world_size,
    train_val_split,
)

EVAL_BATCH = 8  # images of a process
IGNORED = 255  # in a mask: a pixel that counts for no class, as in PASCAL VOC
STATISTICS_IMAGES = 200  # training images whose mean and standard deviation normalize all


class Example(NamedTuple):
    """An image with its objects.

    Attributes:
        image: uint8 [3, H, W].
        target: `image_id`, int64 []; `boxes`, float32 [K, 4], as x1, y1, x2, y2 in pixels from the
            image's upper left corner, with x1 < x2 and y1 < y2; `labels`, int64 [K], from 1 on;
            `iscrowd`, int64 [K], 1 for what counts neither as found nor as missed; `area`, float32
            [K], in pixels; and for segmentation `mask`, uint8 [H, W], 0 for background and
            `IGNORED` for no class.
    """

    image: Tensor
    target: dict[str, Tensor]


ObjectBatch = tuple[list[Tensor], list[dict[str, Tensor]]]  # images and targets


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
        crop: Side length of a random square of each training image to train on, with its mask and
            without boxes; 0 trains on complete images.

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
    ) -> None:
        super().__init__(val_images, seed, batch_size, iterations)
        self.metric, self.crop = metric, crop
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
            draws = indices[rank_slice].tolist(), flips[rank_slice], corners[rank_slice]
            examples = []
            for index, flip, corner in zip(*draws, strict=True):
                example = to_learn(self.example("train", index))
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


def batched(examples: Sequence[Example]) -> ObjectBatch:
    """Return the images and the targets of some examples; the images may differ in size."""
    return [e.image for e in examples], [e.target for e in examples]


def to_learn(example: Example) -> Example:
    """Return an image with the objects that a net learns from: not those with `iscrowd`."""
    target = dict(example.target)
    learned = target["iscrowd"] == 0
    target |= {name: target[name][learned] for name in ("boxes", "labels", "iscrowd", "area")}
    return Example(example.image, target)


def mirror(example: Example) -> Example:
    """Return an image with its objects, flipped horizontally."""
    image, target = example
    width = image.shape[-1]
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    mirrored: dict[str, Any] = {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "mask" in target:
        mirrored["mask"] = target["mask"].flip(-1)
    return Example(image.flip(-1), target | mirrored)


def cropped(example: Example, side: int, corner: np.ndarray) -> Example:
    """Return a square of an image with its mask; of a side that is shorter all.

    Args:
        example: An image with a mask and without boxes.
        side: Side length of the square.
        corner: Its upper left corner, as fractions in [0, 1) of the possible rows and columns.
    """
    image, target = example
    sizes = image.shape[1:]
    starts = [int(at * max(1, n - side + 1)) for at, n in zip(corner, sizes, strict=True)]
    rows, columns = (slice(start, start + side) for start in starts)
    return Example(image[:, rows, columns], target | {"mask": target["mask"][rows, columns]})


def make_target(
    image_id: int, boxes: Sequence[Sequence[float]], labels: Sequence[int], **others: Tensor
) -> dict[str, Tensor]:
    """Return the target of an image, also of one without objects.

    Args:
        image_id: A number of its own for each image of a split.
        boxes: x1, y1, x2, y2 of each object.
        labels: The class of each object, from 1 on.
        others: Further entries; `iscrowd` and `area` have a default.
    """
    corners = torch.tensor([*boxes], dtype=torch.float32).reshape(-1, 4)
    return {
        "image_id": torch.tensor(image_id),
        "boxes": corners,
        "labels": torch.tensor([*labels], dtype=torch.int64),
        "iscrowd": torch.zeros(len(corners), dtype=torch.int64),
        "area": (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
        **others,
    }
