"""Decode and encode JPEG files: by torchcodec, or by torchvision where torchcodec is missing."""

import numpy as np
import torch
from torch import Tensor

try:
    from torchcodec.decoders import decode_jpeg
    from torchcodec.encoders import JpegEncoder
except (ImportError, OSError, RuntimeError):  # not installed, or its libraries do not load
    HAS_TORCHCODEC = False
else:
    HAS_TORCHCODEC = True

# Second bytes of the markers that begin a JPEG file's segments; the first is always 0xFF.
APP1, APP15, START_OF_SCAN = 0xE1, 0xEF, 0xDA


def decode_rgb(file: np.ndarray) -> Tensor:
    """Decode a JPEG file; EXIF orientation is ignored.

    Args:
        file: Content of the file, uint8 [bytes].

    Returns:
        RGB, uint8 [3, H, W].

    Raises:
        RuntimeError: If it is not a JPEG file, or a damaged one.
    """
    if HAS_TORCHCODEC:
        image = decode_jpeg(torch.from_numpy(_without_exif(file)))
        assert isinstance(image, Tensor)  # a list only of several files
        return image

    # Deprecated since torchvision 0.29, which names torchcodec as the successor.
    from torchvision import io

    return io.decode_jpeg(torch.from_numpy(file), io.ImageReadMode.RGB)


def encode_rgb(image: Tensor, quality: int) -> np.ndarray:
    """Return an image, uint8 [3, H, W], as a JPEG file, uint8 [bytes].

    Args:
        image: The image.
        quality: 1 to 100, as libjpeg counts it.
    """
    if HAS_TORCHCODEC:
        return JpegEncoder(image).to_tensor(quality=quality).numpy()

    from torchvision import io

    return io.encode_jpeg(image, quality).numpy()


def _without_exif(file: np.ndarray) -> np.ndarray:
    """Return a copy of a JPEG file whose EXIF segments (APP1) no decoder reads.

    torchcodec has no option not to rotate an image as its EXIF says. ImageNet's published results
    and its boxes are those of the images as they are stored.
    """
    file = file.copy()
    start = 2  # of a segment, after the marker that begins the file
    while start + 4 <= len(file) and file[start] == 0xFF and file[start + 1] != START_OF_SCAN:
        if file[start + 1] == APP1:
            file[start + 1] = APP15  # of no meaning
        start += 2 + int.from_bytes(file[start + 2 : start + 4].tobytes(), "big")
    return file
