"""Reading images: decoding a file to a uint8 tensor, and loading the images of a split."""

import io
import warnings
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from src.data.transforms import center_crop


class ImageSource(Protocol):
    """The encoded images of a split, as files or in shards."""

    names: np.ndarray  # bytes [n]
    labels: np.ndarray  # int64 [n]

    def location(self, index: int) -> str:
        """Return where an image is stored, for messages."""

    def read(self, index: int) -> np.ndarray:
        """Return the content of an image file, uint8 [bytes]."""


class LoadedBatch(NamedTuple):
    """What a worker process returns: a batch, and a message for each image that was skipped."""

    batch: tuple[Tensor, ...]
    skipped: list[str]


def decode_image(file: np.ndarray) -> Tensor:
    """Decode an image file of any format that Pillow reads; EXIF orientation is ignored.

    Args:
        file: Content of the file, uint8 [bytes].

    Returns:
        RGB, uint8 [3, H, W].

    Raises:
        ValueError: If the file is truncated or not an image.
    """
    try:
        return decode_jpeg(torch.from_numpy(file), ImageReadMode.RGB)
    except RuntimeError:
        pass  # Not a JPEG, or a damaged one: Pillow reads it or says what is wrong with it.

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # corrupt EXIF, unusual palettes
            pixels = np.array(Image.open(io.BytesIO(file.data)).convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
        raise ValueError(f"cannot be decoded ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


class ImageSubset:
    """Some images of a source, such as those left for training.

    Args:
        source: Where the images are stored.
        indices: Their indices in the source, int64 [n].
        skip_corrupt: Skip an image that cannot be decoded instead of raising ValueError.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray, skip_corrupt: bool) -> None:
        self.source, self.indices, self.skip_corrupt = source, indices, skip_corrupt

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
        images = [image for image in (self.load(index, skipped) for index in indices) if image]
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
