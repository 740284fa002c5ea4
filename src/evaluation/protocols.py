"""Ways to test a net: which views of a photo it scores, and the scores of several nets averaged (Sec. 3.4)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import Callback, LightningDataModule
from torch import Tensor, nn
from tqdm import tqdm

from src.data import in_memory
from src.data.imagenet import ImageNet
from src.data.in_memory import ImagesInMemory
from src.data.loader import EvalLoader
from src.data.sampler import Batch
from src.data.transforms import CROP_SIZE, center_crop, nchw, normalize, resize, scaled_size

SHORTER = 256  # side of the photo that crops are of
SCALES = (224, 256, 384, 480, 640)  # shorter sides of the whole photos in multi-scale testing


def one_crop(photo: Tensor) -> list[Tensor]:
    """The middle of a photo [3, H, W]: [1, 3, 224, 224]."""
    return [center_crop(photo, SHORTER)[None]]


def ten_crops(photo: Tensor) -> list[Tensor]:
    """The corners and the middle of a photo [3, H, W], and their mirror images: [10, 3, 224, 224]."""
    photo = resize(photo, *scaled_size(*photo.shape[1:], SHORTER))
    bottom, right = (side - CROP_SIZE for side in photo.shape[1:])
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return [_and_mirrored([photo[:, top : top + CROP_SIZE, left : left + CROP_SIZE] for top, left in places])]


def whole_at_scales(photo: Tensor) -> list[Tensor]:
    """A whole photo [3, H, W] and its mirror image at each of `SCALES`: [2, 3, height, width] each."""
    return [_and_mirrored([resize(photo, *scaled_size(*photo.shape[1:], shorter))]) for shorter in SCALES]


def _and_mirrored(views: list[Tensor]) -> Tensor:
    stacked = torch.stack(views)
    return torch.cat([stacked, stacked.flip(3)])


class Protocol(NamedTuple):
    """`views` gives uint8 [views, 3, height, width] for each size of view; `at_once` photos make a batch.

    Whole photos differ in shape, so they go one by one.
    """

    views: Callable[[Tensor], list[Tensor]]
    at_once: int


PROTOCOLS = {
    "center": Protocol(one_crop, 100),
    "10crop": Protocol(ten_crops, 10),
    "multiscale": Protocol(whole_at_scales, 1),
}


class TestViews(LightningDataModule):
    """TestViews of the test images of `data`, a module that is set up: batches of a list of views and labels [n].

    TestViews are uint8 [n, views, height, width, 3], for each size of view. A small image is its own only view. Raises
    ValueError for a protocol that is not there, or that takes photos if these are small images.
    """

    def __init__(self, data: ImageNet | ImagesInMemory, protocol: str) -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol={protocol} is not one of {', '.join(PROTOCOLS)}")
        if isinstance(data, ImagesInMemory) and protocol != "center":
            raise ValueError(f"protocol={protocol} is for photos: small images are tested as they are, protocol=center")
        self.data, self.protocol = data, PROTOCOLS[protocol]

    def test_dataloader(self) -> Iterable[tuple[Tensor, ...]]:
        self.data.trainer = self.trainer
        batches = self.data.test_dataloader()
        if isinstance(self.data, ImagesInMemory):
            return SmallImages(batches.images, batches.labels)
        count = self.protocol.at_once
        items = [item[first : first + count] for item in batches.index_batches for first in range(0, len(item), count)]
        return EvalLoader(partial(self.data.splits["test"].load_views, self.protocol.views), items, batches.read_batches)

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], _: int) -> tuple[list[Tensor], Tensor]:
        *views, labels = batch
        return views, labels


class SmallImages:
    """Images uint8 [N, H, W, 3] in batches, each its own only view."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return -(-len(self.labels) // in_memory.TEST_BATCH)

    def __iter__(self) -> Iterator[Batch]:
        both = (of.split(in_memory.TEST_BATCH) for of in (self.pixels[:, None], self.labels))
        return zip(*both, strict=True)


def labels_of(data: ImageNet | ImagesInMemory) -> np.ndarray:
    """Of all test images of a module that is set up, in order."""
    in_memory = isinstance(data, ImagesInMemory)
    return data.splits["test"][1].numpy() if in_memory else data.splits["test"].source.labels


class Normalized(nn.Module):
    """A net that takes pixels, uint8 [N, H, W, 3], normalized as those it was trained on.

    `mean` and `std` are in the order R, G, B, as the pixels are; with `bgr` the net takes B, G, R.
    """

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor | None, bgr: bool = False) -> None:
        super().__init__()
        # No buffers: a net in half precision does not halve its mean.
        self.net, self.mean, self.std, self.bgr = net, mean, std, bgr

    def forward(self, pixels: Tensor) -> Tensor:
        self.mean = self.mean.to(pixels.device)
        self.std = None if self.std is None else self.std.to(pixels.device)
        mean, std = self.mean, self.std
        if mean.shape[:-1] not in ((), pixels.shape[2:3], pixels.shape[1:3]):
            # The mean image is of 224x224 crops, at whatever place; photos of other sizes get its mean per channel.
            mean, std = (None if of is None else of.reshape(-1, 3).mean(0) for of in (mean, std))
        weights = next(self.net.parameters(), mean)
        images = normalize(pixels, mean, std)
        return self.net(nchw(images.flip(-1) if self.bgr else images).to(weights.dtype))


class Ensemble(nn.Module):
    """TestViews, as `TestViews` makes them, to log scores [n, classes]: logs of softmax scores averaged over views and nets.

    The paper averages "the scores" and does not say which; with ten crops its authors average softmax scores, which
    is taken for all protocols here. TestViews and nets all count alike.
    """

    def __init__(self, nets: Sequence[Normalized]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, views: list[Tensor]) -> Tensor:
        scores = []
        for of_size in views:
            pixels = of_size.flatten(0, 1)
            for net in self.nets:
                scores.append(net(pixels).float().log_softmax(1).unflatten(0, of_size.shape[:2]))
        # Averaged as logs: a softmax underflows to ties at zero, which would spoil the best five.
        together = torch.cat(scores, 1)
        return together.logsumexp(1) - math.log(together.shape[1])


class Bar(Callback):
    """Moves a progress bar on by the images of each batch."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def on_test_batch_end(self, trainer: object, _: object, outputs: object, batch: Batch, *__: object) -> None:
        self.bar.update(len(batch[1]) * trainer.world_size)
