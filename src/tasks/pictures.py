"""Draw the objects of images, as boxes or masks: those that are there above those found."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from src.data.examples import IGNORED
from src.runs.atomic_io import atomic_write

SIDE = 256  # pixels of the longer side of each image
COLUMNS = 8
MIN_SCORE = 0.5  # detections with a lower score are left out
TRUTH, FOUND = "white", "yellow"
GRAY = (128, 128, 128)  # of pixels that count for no class


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
    scale, picture = SIDE / max(image.shape[1:]), enlarged(image)
    names = [classes[label - 1] for label in objects["labels"].tolist()]
    boxes = objects["boxes"]
    if "scores" in objects:
        kept = objects["scores"] >= MIN_SCORE
        boxes = boxes[kept]
        scores = objects["scores"].tolist()
        names = [f"{n} {s:.2f}" for n, s in zip(names, scores, strict=True) if s >= MIN_SCORE]
    if len(boxes):
        picture = draw_bounding_boxes(picture, boxes * scale, names, colors=color, width=2)
    return padded(picture)


def draw_mask(image: Tensor, mask: Tensor) -> Tensor:
    """Return an image uint8 [3, SIDE, SIDE] with a color for each class, resized and padded.

    Args:
        image: uint8 [3, H, W].
        mask: The class of each pixel, uint8 [H, W], of which 0 is the background.
    """
    picture, classes = enlarged(image), enlarged(mask[None])[0]
    labels = [label for label in classes.unique().tolist() if label != 0]
    if labels:
        masks = torch.stack([classes == label for label in labels])
        colors = [GRAY if label == IGNORED else mask_color(label) for label in labels]
        picture = draw_segmentation_masks(picture, masks, alpha=0.8, colors=colors)
    return padded(picture)


def mask_color(label: int) -> tuple[int, int, int]:
    """Return the color of a class, R, G and B, far from those of its neighbors."""
    turns = label * 0.618  # the golden ratio spreads any number of hues
    return tuple(round(255 * x) for x in hsv_to_rgb(turns % 1, 0.9, 1.0))  # type: ignore[return-value]


def enlarged(image: Tensor) -> Tensor:
    """Return uint8 [C, H, W] resized to a longer side of SIDE pixels."""
    scale = SIDE / max(image.shape[1:])
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None].float(), size, mode="nearest")[0].byte()


def padded(image: Tensor) -> Tensor:
    """Return an image padded with black to a square."""
    height, width = image.shape[1:]
    return F.pad(image, (0, SIDE - width, 0, SIDE - height))


def write_pictures(path: Path, truth: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Write a PNG file of images in rows, each row of truths above one of what was found.

    Args:
        path: The file; without images, none is written.
        truth: Images uint8 [3, SIDE, SIDE] with the objects that are there.
        found: The same images with those that were found.
    """
    if not truth:
        return
    columns = min(COLUMNS, len(truth))
    rows: list[Tensor] = []
    for first in range(0, len(truth), columns):
        for pictures in (truth, found):
            row = list(pictures[first : first + columns])
            rows += row + [torch.zeros_like(row[0])] * (columns - len(row))
    grid = make_grid(rows, columns, padding=4, pad_value=128)
    image = Image.fromarray(grid.movedim(0, -1).numpy())
    atomic_write(path, lambda file: image.save(file, "PNG"))
