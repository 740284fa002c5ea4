"""Draw the objects of images: those that are there above those that were found."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, make_grid

from src.runs.atomic_io import atomic_write

SIDE = 256  # pixels of the longer side of each image
COLUMNS = 8
MIN_SCORE = 0.5  # detections with a lower score are left out
TRUTH, FOUND = "white", "yellow"


def draw_boxes(
    image: Tensor, objects: dict[str, Tensor], classes: Sequence[str], color: str
) -> Tensor:
    """Return an image uint8 [3, SIDE, SIDE] with named boxes, resized and padded with black.

    Args:
        image: uint8 [3, H, W].
        objects: `boxes` and `labels`, and of detections `scores`.
        classes: The name of label 1, 2, ...
        color: Of the boxes.
    """
    scale = SIDE / max(image.shape[1:])
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    picture = F.interpolate(image[None].float(), size, mode="nearest")[0].byte()
    names = [classes[label - 1] for label in objects["labels"].tolist()]
    boxes = objects["boxes"]
    if "scores" in objects:
        kept = objects["scores"] >= MIN_SCORE
        boxes = boxes[kept]
        scores = objects["scores"].tolist()
        names = [f"{n} {s:.2f}" for n, s in zip(names, scores, strict=True) if s >= MIN_SCORE]
    if len(boxes):
        picture = draw_bounding_boxes(picture, boxes * scale, names, colors=color, width=2)
    return F.pad(picture, (0, SIDE - size[1], 0, SIDE - size[0]))


def write_pictures(path: Path, truth: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Write a PNG file of images in rows, each row of truths above one of what was found.

    Args:
        path: The file.
        truth: Images uint8 [3, SIDE, SIDE] with the objects that are there.
        found: The same images with those that were found.
    """
    columns = min(COLUMNS, math.ceil(len(truth)))
    rows: list[Tensor] = []
    for first in range(0, len(truth), columns):
        for pictures in (truth, found):
            row = list(pictures[first : first + columns])
            rows += row + [torch.zeros_like(row[0])] * (columns - len(row))
    grid = make_grid(rows, columns, padding=4, pad_value=128)
    image = Image.fromarray(grid.movedim(0, -1).numpy())
    atomic_write(path, lambda file: image.save(file, "PNG"))
