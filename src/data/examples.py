"""An image with its objects, and what is done to both."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.data.transforms import resize, scaled_size

IGNORED = 255  # in a mask: a pixel that counts for no class, as in PASCAL VOC


class Example(NamedTuple):
    """An image with its objects.

    Attributes:
        image: uint8 [3, H, W].
        target: `image_id`, int64 []; `boxes`, float32 [K, 4], as x1, y1, x2, y2 in pixels from the
            image's upper left corner, with x1 < x2 and y1 < y2; `labels`, int64 [K], from 1 on;
            `iscrowd`, int64 [K], 1 for what counts neither as found nor as missed; `area`, float32
            [K], in pixels; and for segmentation `mask`, uint8 [H, W], 0 for background and
            `IGNORED` for no class.
    """

    image: Tensor
    target: dict[str, Tensor]


ObjectBatch = tuple[list[Tensor], list[dict[str, Tensor]]]  # images and targets


def batched(examples: Sequence[Example]) -> ObjectBatch:
    """Return the images and the targets of some examples; the images may differ in size."""
    return [e.image for e in examples], [e.target for e in examples]


def to_learn(example: Example) -> Example:
    """Return an image with the objects that a net learns from: not those with `iscrowd`."""
    target = dict(example.target)
    learned = target["iscrowd"] == 0
    target |= {name: target[name][learned] for name in ("boxes", "labels", "iscrowd", "area")}
    return Example(example.image, target)


def mirror(example: Example) -> Example:
    """Return an image with its objects, flipped horizontally."""
    image, target = example
    width = image.shape[-1]
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    mirrored: dict[str, Any] = {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "mask" in target:
        mirrored["mask"] = target["mask"].flip(-1)
    return Example(image.flip(-1), target | mirrored)


def resized(example: Example, shorter_side: int) -> Example:
    """Return an image with its objects, its shorter side of so many pixels."""
    image, target = example
    height, width = image.shape[1:]
    size = scaled_size(height, width, shorter_side)
    if size == (height, width):
        return example
    factors = torch.tensor([size[1] / width, size[0] / height] * 2)
    changed: dict[str, Any] = {"boxes": target["boxes"] * factors}
    if "mask" in target:
        changed["mask"] = interpolate(target["mask"][None, None], size, mode="nearest")[0, 0]
    return Example(resize(image, *size), target | changed)


def cropped(example: Example, side: int, corner: np.ndarray) -> Example:
    """Return a square part of an image with its objects; a side shorter than it stays complete.

    Args:
        example: An image with its objects. Of those outside the square, boxes without width or
            height are left, so that the labels still tell what the image is of.
        side: Side length of the square.
        corner: Its upper left corner, as fractions in [0, 1) of the possible rows and columns.
    """
    image, target = example
    sizes = image.shape[1:]
    top, left = (int(at * max(1, n - side + 1)) for at, n in zip(corner, sizes, strict=True))
    rows, columns = slice(top, top + side), slice(left, left + side)
    part = image[:, rows, columns]
    height, width = part.shape[1:]
    shifted = target["boxes"] - torch.tensor([left, top] * 2)
    limits = torch.tensor([width, height] * 2)
    changed: dict[str, Any] = {"boxes": shifted.clamp(min=torch.zeros(4), max=limits)}
    if "mask" in target:
        changed["mask"] = target["mask"][rows, columns]
    return Example(part, target | changed)


def make_target(
    image_id: int, boxes: Sequence[Sequence[float]], labels: Sequence[int], **others: Tensor
) -> dict[str, Tensor]:
    """Return the target of an image, also of one without objects.

    Args:
        image_id: A number of its own for each image of a split.
        boxes: x1, y1, x2, y2 of each object.
        labels: The class of each object, from 1 on.
        others: Further entries; `iscrowd` and `area` have a default.
    """
    corners = torch.tensor([*boxes], dtype=torch.float32).reshape(-1, 4)
    return {
        "image_id": torch.tensor(image_id),
        "boxes": corners,
        "labels": torch.tensor([*labels], dtype=torch.int64),
        "iscrowd": torch.zeros(len(corners), dtype=torch.int64),
        "area": (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
        **others,
    }
