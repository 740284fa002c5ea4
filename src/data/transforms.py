"""What is done to a batch of images, for all of them at once, on the device they lie on (Sec. 4.2).

Images are [N, H, W, 3]: as uint8 they are kept, as float32 they come out, viewed as [N, 3, H, W] in
channels-last order. The draws of a batch are made apart from their use, so that a batch can be made anywhere.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class CropParams(NamedTuple):
    """One batch's random choices, each of shape [N]: the crop's corner in the padded image, and the flip."""

    top: Tensor
    left: Tensor
    flip: Tensor


def draw(rng: np.random.Generator, count: int, padding: int, flip: bool) -> CropParams:
    """CropParams for `count` images: corners 0 .. 2 padding, each as likely; flips one time in two, or never."""
    top, left = torch.from_numpy(rng.integers(0, 2 * padding + 1, (2, count)))
    return CropParams(top, left, torch.from_numpy(rng.integers(0, 2 if flip else 1, count).astype(bool)))


def normalize(images: Tensor, mean: Tensor, std: Tensor | None) -> Tensor:
    """uint8 [N, H, W, 3] less `mean`, over `std` if any, which end in [3] and are in units of 0 .. 255; float32."""
    images = images.float().sub_(mean)
    return images if std is None else images.div_(std)


def crop_and_flip(images: Tensor, draws: CropParams, padding: int) -> Tensor:
    """Pads float [N, H, W, 3] with zeros on each side and cuts each image's own [H, W] out of it, maybe flipped."""
    n, height, width, channels = images.shape
    rows = draws.top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = draws.left[:, None] + torch.where(draws.flip[:, None], width - 1 - columns, columns)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    # One flat index of pixels: four times as fast on a CPU as indexing three dimensions.
    first = torch.arange(n, device=images.device)[:, None] * padded.shape[1]
    pixels = (first + rows)[:, :, None] * padded.shape[2] + columns[:, None, :]
    return padded.view(-1, channels).index_select(0, pixels.view(-1)).view(n, height, width, channels)
