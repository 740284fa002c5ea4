"""Evaluation protocols (Sec. 3.4): which views of each test image a net sees.

- `center`: the central 224x224 crop of the image at shorter side 256; small images as they are.
- `10crop`: the four corners and the center, and their mirror images.
- `multiscale`: the complete image at five scales, and its mirror image; the nets are then applied
  fully convolutionally, with global average pooling over a larger feature map.
- `scales256-384-512`: likewise at these shorter sides, or any others. The VGG paper tests nets that
  were trained at shorter side S at S or S-32, S, S+32, and nets trained at 256 to 512 at 384 or
  256, 384, 512 (its Sec. 4.1 and 4.2).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from src.data.image_datamodule import ImageDataModule
from src.data.imagenet import ImageNet
from src.data.in_memory import InMemoryEvalLoader
from src.data.loader import EvalLoader
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
    # The corners of the resized image, which is 256 by at least 256: the crops overlap.
    bottom, right = (side - CROP_SIZE for side in image.shape[1:])
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [
        image[:, top : top + CROP_SIZE, left : left + CROP_SIZE]
        for top, left in [*corners, (round(bottom / 2), round(right / 2))]
    ]
    return [_with_mirror_images(crops)]


def multi_scale(image: Tensor, shorter_sides: Sequence[int] = MULTI_SCALES) -> list[Tensor]:
    """Return a complete image [3, H, W] and its mirror image at each of some shorter sides.

    Returns:
        For each shorter side, a tensor [2, 3, height, width].
    """
    sizes = [scaled_size(image.shape[1], image.shape[2], shorter) for shorter in shorter_sides]
    return [_with_mirror_images([resize(image, *size)]) for size in sizes]


def _with_mirror_images(images: list[Tensor]) -> Tensor:
    stacked = torch.stack(images)
    return torch.cat([stacked, stacked.flip(3)])


# How a protocol makes views of an image uint8 [3, H, W], for each size of view
# [views, 3, height, width], and how many images are in a batch.
Protocol = tuple[Callable[[Tensor], list[Tensor]], int]
PROTOCOLS: dict[str, Protocol] = {
    "center": (center_crop, 100),
    "10crop": (ten_crops, 10),
    "multiscale": (multi_scale, 1),  # complete images differ in shape
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol of `PROTOCOLS`, or such as `scales256-384-512`, by its name."""
    if not name.startswith("scales"):
        return PROTOCOLS[name]
    shorter_sides = [int(side) for side in name.removeprefix("scales").split("-")]
    return partial(multi_scale, shorter_sides=shorter_sides), 1


class TestViews(LightningDataModule):
    """The test images of a data module, cut into views: batches of a list of views and labels [n].

    The views are uint8 [n, views, height, width, 3], one tensor for each size of view.

    Args:
        data: The data module, already set up when batches are asked for.
        protocol: A name that `find_protocol` takes.

    Raises:
        ValueError: The protocol does not apply to these images.
    """

    __test__ = False  # the name looks like a test class to pytest

    def __init__(self, data: ImageDataModule, protocol: str) -> None:
        super().__init__()
        data.check_protocol(protocol)
        self.data = data
        self.protocol = protocol

    def test_dataloader(self) -> Iterable[tuple[Tensor, ...]]:
        """Return the batches of this process, each image once over all processes."""
        self.data.trainer = self.trainer  # tells the data module its device and rank
        loader = self.data.test_dataloader()
        if isinstance(loader, InMemoryEvalLoader):
            # A single view each, the image as it is. The sampler gives slices, so that batches
            # are views of the memory on the device and no image is copied.
            images, size = TensorDataset(loader.images[:, None], loader.labels), loader.batch_size
            slices = [slice(first, first + size) for first in range(0, len(images), size)]
            return DataLoader(images, sampler=slices, batch_size=None)

        # The data module's own indices, in batches that fit the protocol.
        assert isinstance(self.data, ImageNet)
        make_views, size = find_protocol(self.protocol)
        load_batch = partial(self.data.splits["test"].load_views, make_views)
        return EvalLoader(load_batch, loader.indices, loader.workers, size)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, ...], _: int
    ) -> tuple[list[Tensor], Tensor]:
        """Separate the views from the labels."""
        *views, labels = batch  # one tensor of views for each size
        return views, labels
