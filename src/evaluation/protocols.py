"""Evaluation protocols (Sec. 3.4): which views of each test image a net sees.

- `center`: the central 224x224 crop of the image at shorter side 256; small images as they are.
- `10crop`: the four corners and the center, and their mirror images.
- `multiscale`: the complete image at five scales, and its mirror image; the nets are then applied
  fully convolutionally, with global average pooling over a larger feature map.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from src.data import in_memory
from src.data.image_datamodule import ImageDataModule
from src.data.imagenet import ImageNet
from src.data.in_memory import InMemoryEvalLoader
from src.data.loader import EvalLoader
from src.data.sampler import Batch
from src.data.transforms import CROP_SIZE, resize, scaled_size
from src.data.transforms import center_crop as crop_center

CROP_SCALE = 256  # shorter side of the image that crops are taken from
MULTI_SCALES = (224, 256, 384, 480, 640)  # shorter sides in multi-scale testing


def center_crop(image: Tensor) -> list[Tensor]:
    """Return the central crop of an image [3, H, W]: one tensor [1, 3, 224, 224]."""
    return [crop_center(image, CROP_SCALE)[None]]


def ten_crops(image: Tensor) -> list[Tensor]:
    """Return the standard 10 crops of an image [3, H, W]: one tensor [10, 3, 224, 224]."""
    image = resize(image, *scaled_size(image.shape[1], image.shape[2], CROP_SCALE))
    bottom, right = (side - CROP_SIZE for side in image.shape[1:])
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [
        image[:, top : top + CROP_SIZE, left : left + CROP_SIZE]
        for top, left in [*corners, (round(bottom / 2), round(right / 2))]
    ]
    return [_with_mirror_images(crops)]


def multi_scale(image: Tensor) -> list[Tensor]:
    """Return a complete image [3, H, W] and its mirror image at each of `MULTI_SCALES`.

    Returns:
        For each scale, a tensor [2, 3, height, width].
    """
    sizes = [scaled_size(image.shape[1], image.shape[2], shorter) for shorter in MULTI_SCALES]
    return [_with_mirror_images([resize(image, *size)]) for size in sizes]


def _with_mirror_images(images: list[Tensor]) -> Tensor:
    stacked = torch.stack(images)
    return torch.cat([stacked, stacked.flip(3)])


class Protocol(NamedTuple):
    """How the test images are cut into views and grouped into batches.

    Args:
        views: Makes views of an image, uint8 [3, H, W]: for each size, [views, 3, height, width].
        batch_size: Images in a batch.
    """

    views: Callable[[Tensor], list[Tensor]]
    batch_size: int


PROTOCOLS = {
    "center": Protocol(center_crop, 100),
    "10crop": Protocol(ten_crops, 10),
    "multiscale": Protocol(multi_scale, 1),  # complete images differ in shape
}


class TestViews(LightningDataModule):
    """The test images of a data module, cut into views: batches of a list of views and labels [n].

    The views are uint8 [n, views, height, width, 3], one tensor for each size of view.

    Args:
        data: The data module, already set up when batches are asked for.
        protocol: A key of `PROTOCOLS`.

    Raises:
        ValueError: The protocol does not apply to these images.
    """

    __test__ = False  # the name looks like a test class to pytest

    def __init__(self, data: ImageDataModule, protocol: str) -> None:
        super().__init__()
        data.check_protocol(protocol)
        self.data = data
        self.protocol = PROTOCOLS[protocol]

    def test_dataloader(self) -> Iterable[tuple[Tensor, ...]]:
        """Return the batches of this process, each image once over all processes."""
        self.data.trainer = self.trainer  # tells the data module its device and rank
        batches = self.data.test_dataloader()
        if isinstance(batches, InMemoryEvalLoader):
            return UncroppedBatches(batches.images, batches.labels)

        # The data module's own indices, in batches that fit the protocol.
        assert isinstance(self.data, ImageNet)
        size = self.protocol.batch_size
        make_views = partial(self.data.splits["test"].load_views, self.protocol.views)
        return EvalLoader(make_views, batches.indices, batches.workers, size)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, ...], _: int
    ) -> tuple[list[Tensor], Tensor]:
        """Separate the views from the labels."""
        *views, labels = batch
        return views, labels


class UncroppedBatches:
    """Batches of images [N, H, W, 3] with a single view each: the image as it is."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.views = images[:, None]
        self.labels = labels

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / in_memory.TEST_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        size = in_memory.TEST_BATCH
        return zip(self.views.split(size), self.labels.split(size), strict=True)
