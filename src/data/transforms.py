"""Image transforms: batches of small images (Sec. 4.2), and single ImageNet images (Sec. 3.4).

Random choices are drawn apart from their use: the numbers of a batch come from one generator, and
any process can apply them.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

CROP_SIZE = 224  # pixels of a side, the input of every ImageNet net in the paper

# Principal components of RGB in 0 .. 1 over ImageNet's training images; eigenvectors are columns.
# The values of fb.resnet.torch, as neither this paper nor AlexNet's prints any.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def normalize(images: Tensor, mean: Tensor, std: Tensor | None) -> Tensor:
    """Subtract the mean and divide by the standard deviation, if there is one.

    Args:
        images: uint8 [N, H, W, 3].
        mean: In 0 .. 255, of a shape that broadcasts: [3], [W, 3] or [H, W, 3].
        std: Likewise, or None.

    Returns:
        float32 [N, H, W, 3].
    """
    images = images.float().sub_(mean)
    return images if std is None else images.div_(std)


def nchw(images: Tensor) -> Tensor:
    """View [N, H, W, C] as [N, C, H, W] without a copy, which PyTorch calls channels-last."""
    return images.permute(0, 3, 1, 2)


def pca_color_noise(rng: np.random.Generator, count: int, std: float) -> Tensor:
    """Draw AlexNet's color noise (its Sec. 4.1): one shift of R, G and B for each image.

    Args:
        rng: Generator of the batch.
        count: Number of images.
        std: Standard deviation of the alphas, the factors of the principal components.

    Returns:
        float32 [count, 3], to be added to pixels in 0 .. 255.
    """
    alphas = rng.normal(0, std, (count, 3))
    return torch.from_numpy(255 * (alphas * EIGENVALUES) @ np.transpose(EIGENVECTORS)).float()


# Batches of small images, on the device where they are stored.


class CropParams(NamedTuple):
    """Random choices for a batch, each [N]: the crop's corner in the padded image, and the flip."""

    top: Tensor
    left: Tensor
    flip: Tensor


def random_crop_params(
    rng: np.random.Generator, count: int, padding: int, flip: bool
) -> CropParams:
    """Draw corners from 0 .. 2 * padding and, if `flip` is set, flips of half the images."""
    # `integers` excludes its upper bound: 9 corners per axis for padding 4, all equally likely.
    top, left = torch.from_numpy(rng.integers(0, 2 * padding + 1, (2, count)))
    flips = torch.from_numpy(rng.integers(0, 2 if flip else 1, count).astype(bool))
    return CropParams(top, left, flips)


def crop_and_flip(images: Tensor, params: CropParams, padding: int) -> Tensor:
    """Pad images with zeros, crop each back to its size, and flip some horizontally.

    Args:
        images: float32 [N, H, W, C].
        params: Corner and flip of each image.
        padding: Pixels of zeros on each side.

    Returns:
        float32 [N, H, W, C].
    """
    n, height, width, channels = images.shape
    rows = params.top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(params.flip[:, None], width - 1 - columns, columns)
    columns = params.left[:, None] + columns
    padded = pad(images, (0, 0, padding, padding, padding, padding))

    # One flat index of pixels: four times as fast on a CPU as indexing three dimensions.
    first = torch.arange(n, device=images.device)[:, None] * padded.shape[1]
    pixels = (first + rows)[:, :, None] * padded.shape[2] + columns[:, None, :]
    cropped = padded.view(-1, channels).index_select(0, pixels.view(-1))
    return cropped.view(n, height, width, channels)


# Single ImageNet images, uint8 [3, H, W], in worker processes.


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [3, H, W], bilinear with antialiasing, as Pillow does."""
    # Computed in uint8, without a float32 copy; a crop has to be made channels-last first.
    image = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(image, (height, width), mode="bilinear", antialias=True)[0]


def scaled_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Return height and width with the shorter side set to a length, the longer rounded down."""
    if height <= width:
        return shorter_side, shorter_side * width // height
    return shorter_side * height // width, shorter_side


def center_crop(image: Tensor, shorter_side: int = 256) -> Tensor:
    """Resize the shorter side and return the 224x224 in the center, uint8 [3, 224, 224]."""
    image = resize(image, *scaled_size(image.shape[1], image.shape[2], shorter_side))
    top, left = (round((side - CROP_SIZE) / 2) for side in image.shape[1:])
    return image[:, top : top + CROP_SIZE, left : left + CROP_SIZE]


class Box(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class RandomScaleCrop(NamedTuple):
    """Shorter side drawn from smallest .. largest, then any 224x224 of the image (Sec. 3.4).

    The result is the box under that crop in the image as stored, rounded to whole pixels. Resizing
    the box alone costs a third of resizing the image and is off by less than one of its pixels.
    """

    smallest: int
    largest: int
    num_draws: int = 3  # shorter side, row, column

    def box(self, draws: np.ndarray, height: int, width: int) -> Box:
        """Return the box for `num_draws` random numbers in [0, 1)."""
        scale, row, column = draws.tolist()
        shorter_side = self.smallest + int(scale * (self.largest + 1 - self.smallest))
        scaled_height, scaled_width = scaled_size(height, width, shorter_side)
        top, rows = _unscaled_crop(row, height, scaled_height)
        left, columns = _unscaled_crop(column, width, scaled_width)
        return Box(top, left, rows, columns)


def _unscaled_crop(draw: float, side: int, scaled_side: int) -> tuple[int, int]:
    """Return the first pixel and the length, along one side of an image, of a random crop."""
    first = int(draw * (scaled_side - CROP_SIZE + 1))
    length = max(1, round(CROP_SIZE * side / scaled_side))
    return min(round(first * side / scaled_side), side - length), length


class RandomResizedCrop(NamedTuple):
    """torchvision's crop of 8% to 100% of the area, with a width of 3/4 to 4/3 of the height."""

    smallest_area: float = 0.08
    max_ratio: float = 4 / 3
    num_draws: int = 22  # area and ratio of ten attempts, then row and column

    def box(self, draws: np.ndarray, height: int, width: int) -> Box:
        """Return the box for `num_draws` random numbers in [0, 1)."""
        *attempts, row, column = draws.tolist()
        for area, exponent in zip(attempts[::2], attempts[1::2], strict=True):
            pixels = height * width * (self.smallest_area + area * (1 - self.smallest_area))
            ratio = self.max_ratio ** (2 * exponent - 1)  # uniform in the logarithm
            rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = int(row * (height - rows + 1)), int(column * (width - columns + 1))
                return Box(top, left, rows, columns)

        # No attempt fits into a very long image: take as much of its center as the ratio allows.
        rows = min(height, round(width * self.max_ratio))
        columns = min(width, round(height * self.max_ratio))
        return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def crop_and_resize(image: Tensor, box: Box, flip: bool) -> Tensor:
    """Resize the box of uint8 [3, H, W] to [3, 224, 224] and, if `flip` is set, mirror it."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    part = resize(part, CROP_SIZE, CROP_SIZE)
    return part.flip(2) if flip else part
