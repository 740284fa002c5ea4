"""Some images of a split, such as those left for training, and how batches of them are loaded."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.image_folder import ImageFiles
from src.data.image_reader import decode_image
from src.data.transforms import (
    RandomResizedCrop,
    RandomScaleCrop,
    center_crop,
    crop_and_resize,
    pca_color_noise,
)
from src.data.webdataset import Shards

ImageSource = ImageFiles | Shards
Crop = RandomScaleCrop | RandomResizedCrop


class LoadedBatch(NamedTuple):
    """What a worker process returns: a batch, and a message for each image that was skipped."""

    batch: tuple[Tensor, ...]
    skipped: list[str]


class ImageSubset:
    """Some images of a source.

    Its methods that load batches run in worker processes.

    Args:
        source: Where the images are stored.
        skip_corrupt: Skip an image that cannot be decoded instead of raising ValueError.
        indices: Their indices in the source, int64 [n]; None for all.
    """

    def __init__(
        self, source: ImageSource, skip_corrupt: bool, indices: np.ndarray | None = None
    ) -> None:
        self.source, self.skip_corrupt = source, skip_corrupt
        self.indices = np.arange(len(source.labels)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int, skipped: list[str]) -> tuple[Tensor, int] | None:
        """Return an image, uint8 [3, H, W], and its label; None if it is skipped.

        Args:
            index: Index in this subset.
            skipped: Gets a message if the image is skipped.

        Raises:
            ValueError: If the image cannot be decoded and is not to be skipped.
        """
        index = int(self.indices[index])
        try:
            return decode_image(self.source.read(index)), int(self.source.labels[index])
        except ValueError as error:
            message = f"{self.source.location(index)} {error}"
            if not self.skip_corrupt:
                raise ValueError(
                    f"{message}: fix or remove it, or skip such images with data.on_bad=skip"
                ) from None
            skipped.append(message)
            return None

    def load_views(
        self, make_views: Callable[[Tensor], list[Tensor]], indices: range
    ) -> LoadedBatch:
        """Load a batch of views for evaluation, smaller than `indices` if images are skipped.

        Args:
            make_views: Turns uint8 [3, H, W] into uint8 [views, 3, height, width], for each size
                of view.
            indices: Indices in this subset.

        Returns:
            uint8 [n, views, height, width, 3] for each size of view, and labels [n]. If all images
            are skipped, one empty tensor of views.
        """
        skipped: list[str] = []
        loaded = [self.load(index, skipped) for index in indices]
        images = [image for image in loaded if image]
        views_by_size = zip(*(make_views(image) for image, _ in images), strict=True)
        views = [torch.stack([v.movedim(1, 3) for v in same_size]) for same_size in views_by_size]
        # Without images there are no sizes of view either; EvalLoader drops such a batch.
        views = views or [torch.empty((0, 1), dtype=torch.uint8)]
        return LoadedBatch((*views, torch.tensor([label for _, label in images])), skipped)

    def load_center_crops(self, indices: range) -> LoadedBatch:
        """Load center crops, uint8 [n, 224, 224, 3], and labels [n]."""
        (crops, labels), skipped = self.load_views(
            lambda image: [center_crop(image)[None]], indices
        )
        return LoadedBatch((crops.squeeze(1), labels), skipped)

    def load_augmented(
        self,
        crop: Crop,
        color_noise: float,
        indices: Tensor,
        rng: np.random.Generator,
        rank_slice: slice,
    ) -> LoadedBatch:
        """Load this process's part of a training batch.

        Args:
            crop: Random crop of each image.
            color_noise: Standard deviation of the PCA color noise.
            indices: Indices of the global batch in this subset, int64 [batch size].
            rng: Generator of the batch.
            rank_slice: The part of the global batch.

        Returns:
            Images uint8 [n, 224, 224, 3], labels [n] and color noise [n, 3], which the training
            device adds after it has normalized the images.

        Raises:
            ValueError: If no image at all can be decoded.
        """
        # Random numbers of the global batch: those of an image do not depend on the world size.
        draws = rng.random((len(indices), 1 + crop.num_draws))
        noise = pca_color_noise(rng, len(indices), color_noise)

        # Decoding is what takes the time, and only this process's images are decoded.
        images, labels, skipped = [], [], list[str]()
        per_image = zip(indices[rank_slice].tolist(), draws[rank_slice], strict=True)
        for index, numbers in per_image:
            # A skipped image leaves its random numbers to the one in its place.
            image, label = self._load_next(index, skipped)
            box = crop.box(numbers[1:], *image.shape[1:])
            image = crop_and_resize(image, box, flip=numbers[0] < 0.5)
            images.append(image.permute(1, 2, 0))
            labels.append(label)
        batch = torch.stack(images), torch.tensor(labels), noise[rank_slice]
        return LoadedBatch(batch, skipped)

    def _load_next(self, index: int, skipped: list[str]) -> tuple[Tensor, int]:
        """Return an image and its label, or those of the next image that can be decoded."""
        for i in range(len(self)):
            loaded = self.load((index + i) % len(self), skipped)
            if loaded:
                return loaded
        raise ValueError(f"none of the {len(self):,} training images can be read: {skipped[-1]}")
