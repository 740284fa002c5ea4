"""Decode an image file to a uint8 tensor."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.jpeg import decode_rgb


def decode_image(file: np.ndarray) -> Tensor:
    """Decode an image file of any format that Pillow reads; EXIF orientation is ignored.

    Args:
        file: Content of the file, uint8 [bytes].

    Returns:
        RGB, uint8 [3, H, W].

    Raises:
        ValueError: If the file is truncated or not an image.
    """
    # JPEG first, because its decoder is faster than Pillow and releases Python's lock.
    try:
        return decode_rgb(file)
    except RuntimeError:
        pass  # Not a JPEG, or a damaged one: Pillow reads it or says what is wrong with it.

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # corrupt EXIF, unusual palettes
            image: Image.Image = Image.open(io.BytesIO(file.data))
            if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = np.array(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
        raise ValueError(f"cannot be decoded ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_image(path: Path) -> Tensor:
    """Return the image in a file, uint8 [3, H, W].

    Raises:
        ValueError: It cannot be decoded; the message begins with the path.
    """
    try:
        return decode_image(np.fromfile(path, np.uint8))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
