"""One photo: its file decoded, and the part of it that a net sees. Photos are uint8 [3, H, W] (Sec. 3.4)."""

import io
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

SIZE = 224  # pixels of a side, as all nets of the paper take them


def decode(file: np.ndarray) -> Tensor:
    """The photo in a file, uint8 [bytes], of any kind that PIL reads: as RGB and as it lies, EXIF never turns it.

    Raises ValueError if the file is truncated or no image.
    """
    try:
        return decode_jpeg(torch.from_numpy(file), ImageReadMode.RGB)
    except RuntimeError:  # not a JPEG, or one that is not whole
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF, odd palettes
            pixels = np.array(Image.open(io.BytesIO(file)).convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error and more for a damaged file
        raise ValueError(f"cannot be decoded ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def resize(photo: Tensor, height: int, width: int) -> Tensor:
    """Bilinear and antialiased, computed in uint8; channels-last, which a part of a photo must be made first."""
    photo = photo[None].contiguous(memory_format=torch.channels_last)
    return interpolate(photo, (height, width), mode="bilinear", antialias=True)[0]


def scaled(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width with the shorter side brought to `shorter`, the longer rounded down."""
    return (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)


def center(photo: Tensor, shorter: int = 256) -> Tensor:
    """The 224x224 in the middle, [3, 224, 224], of the photo with its shorter side brought to `shorter`."""
    photo = resize(photo, *scaled(*photo.shape[1:], shorter))
    top, left = (round((side - SIZE) / 2) for side in photo.shape[1:])
    return photo[:, top : top + SIZE, left : left + SIZE]


class Box(NamedTuple):
    """A part of a photo, in pixels of the photo."""

    top: int
    left: int
    height: int
    width: int


class RandomScale(NamedTuple):
    """Sec. 3.4: the shorter side is drawn from smallest .. largest, then any 224x224 of the scaled photo.

    What comes out is the box of the unscaled photo under that crop, to the nearest whole pixel: resizing the box alone
    costs a third of resizing the photo, and differs by less than a pixel of the photo.
    """

    smallest: int
    largest: int
    draws: int = 3

    def box(self, draws: np.ndarray, height: int, width: int) -> Box:
        """`draws` are `self.draws` numbers in 0 .. 1."""
        scale, *corner = draws.tolist()
        shorter = self.smallest + int(scale * (self.largest + 1 - self.smallest))
        after = scaled(height, width, shorter)
        top, rows = _unscaled(corner[0], height, after[0])
        left, columns = _unscaled(corner[1], width, after[1])
        return Box(top, left, rows, columns)


def _unscaled(draw: float, before: int, after: int) -> tuple[int, int]:
    """Any SIZE pixels of a side of `after` pixels, when it had `before`: the first of them and how many."""
    first, length = int(draw * (after - SIZE + 1)), max(1, round(SIZE * before / after))
    return min(round(first * before / after), before - length), length


class RandomArea(NamedTuple):
    """torchvision's random-resized crop: 8% to 100% of the area, width to height 3/4 to 4/3, in ten attempts."""

    smallest: float = 0.08
    widest: float = 4 / 3
    draws: int = 22

    def box(self, draws: np.ndarray, height: int, width: int) -> Box:
        """`draws` are `self.draws` numbers in 0 .. 1."""
        *attempts, down, across = draws.tolist()
        for area, shape in zip(attempts[::2], attempts[1::2], strict=True):
            pixels = height * width * (self.smallest + area * (1 - self.smallest))
            ratio = self.widest ** (2 * shape - 1)
            rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                return Box(int(down * (height - rows + 1)), int(across * (width - columns + 1)), rows, columns)
        # A photo too long or too tall: as much of its middle as the ratio allows.
        rows, columns = min(height, round(width * self.widest)), min(width, round(height * self.widest))
        return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def cut(photo: Tensor, box: Box, flip: bool) -> Tensor:
    """The box as [3, 224, 224], maybe flipped."""
    part = photo[:, box.top : box.top + box.height, box.left : box.left + box.width]
    part = resize(part, SIZE, SIZE)
    return part.flip(2) if flip else part
