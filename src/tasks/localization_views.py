"""What a localizer sees of a test image: a central crop, or all of it at one scale or several.

As the paper's classifiers (Sec. 3.4), and with their scales: the net is applied to complete images
fully convolutionally.
"""

import re
from typing import NamedTuple

from torch import Tensor

from src.data.transforms import resize, scaled_size

# The shorter sides of Sec. 3.4, in units of that of center crops.
SCALES = tuple(side / 256 for side in (224, 256, 384, 480, 640))


class LocalizationProtocol(NamedTuple):
    """How a localizer is tested.

    Attributes:
        crop: Whether it sees the central crop alone.
        shorter_sides: Pixels of the shorter side of the image, at each scale.
    """

    crop: bool
    shorter_sides: tuple[int, ...]


class View(NamedTuple):
    """A part of an image at some scale.

    Attributes:
        image: uint8 [3, h, w].
        corner: Left and top in the resized image.
        factors: By what width and height of the image are resized.
    """

    image: Tensor
    corner: tuple[int, int]
    factors: tuple[float, float]

    def in_image(self, boxes: Tensor) -> Tensor:
        """Return boxes [..., 4] of the view in pixels of the image."""
        return (boxes + boxes.new_tensor(self.corner * 2)) / boxes.new_tensor(self.factors * 2)


def parse_protocol(name: str, shorter_side: int) -> LocalizationProtocol:
    """Return the protocol of a name: `center`, `dense`, `multiscale` or such as `scales224-256`.

    Args:
        name: The name.
        shorter_side: Pixels of the shorter side of which the center is cropped.

    Raises:
        ValueError: There is no such protocol.
    """
    if name in ("center", "dense"):
        return LocalizationProtocol(name == "center", (shorter_side,))
    if name == "multiscale":
        return LocalizationProtocol(False, tuple(round(shorter_side * scale) for scale in SCALES))
    if re.fullmatch(r"scales[1-9]\d*(-[1-9]\d*)*", name):
        return LocalizationProtocol(False, tuple(map(int, name.removeprefix("scales").split("-"))))
    raise ValueError(
        f"protocol={name} does not apply to localization: set protocol=center, dense, multiscale "
        "or such as scales224-256"
    )


def make_views(image: Tensor, protocol: LocalizationProtocol, crop: int) -> list[View]:
    """Return the views of an image uint8 [3, H, W].

    Args:
        image: The image.
        protocol: Which views.
        crop: Side length of the central crop; 0 crops nothing.
    """
    views = []
    for side in protocol.shorter_sides:
        height, width = scaled_size(image.shape[1], image.shape[2], side)
        view = image if (height, width) == image.shape[1:] else resize(image, height, width)
        factors = width / image.shape[2], height / image.shape[1]
        left = top = 0
        if protocol.crop and crop:
            left, top = (max(0, round((n - crop) / 2)) for n in (width, height))
            view = view[:, top : top + crop, left : left + crop]
        views.append(View(view, (left, top), factors))
    return views
