"""Pool the regions of a detector at the best two of several scales of an image (Appendix B).

The paper leaves open which two: here those at which the region comes closest to the size that it is
pooled to, which is 224 pixels for the nets of Table 1 (as in He et al. 2014, of one scale).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from src.tasks.faster_rcnn import RegionFeatures

SMALLEST = 1e-2  # pixels; smaller boxes are dropped, as torchvision does


class ScaledImage(NamedTuple):
    """An image at one scale, as a detector sees it.

    Attributes:
        shared_map: The map that all regions are pooled from, [1, shared_channels, h, w].
        size: Height and width of the resized image.
    """

    shared_map: Tensor
    size: tuple[int, int]


def compute_map(
    detector: FasterRCNN, image: Tensor, shorter_side: int
) -> tuple[ScaledImage, ImageList]:
    """Return an image at some scale, and as the proposal net takes it."""
    usual = detector.transform
    # The limit of the longer side grows with the shorter one.
    longest = round(usual.max_size * shorter_side / usual.min_size[0])
    transform = GeneralizedRCNNTransform(
        shorter_side, longest, usual.image_mean, usual.image_std
    ).eval()
    padded, _ = transform([image])
    return ScaledImage(detector.backbone(padded.tensors), padded.image_sizes[0]), padded


def scale_factors(size: tuple[int, int], of: Sequence[int]) -> tuple[float, float, float, float]:
    """Return by what a box grows in an image of another size: x1, y1, x2, y2."""
    y, x = size[0] / of[0], size[1] / of[1]
    return x, y, x, y


def pyramid_features(
    regions: RegionFeatures, pyramid: Sequence[ScaledImage], boxes: Tensor, size: tuple[int, int]
) -> Tensor:
    """Return the features of regions at the best two of several scales, merged by maxout.

    Args:
        regions: Computes the features.
        pyramid: The image at one scale or more, from small to large.
        boxes: In pixels of the image, [R, 4].
        size: Height and width of the image.

    Returns:
        [R, regions.out_channels].
    """
    pool = regions.pool
    boxes = regions.with_image(boxes, size)
    assert pool.scales  # set by `make_faster_rcnn`
    target = pool.output_size[0] / pool.scales[0]
    first = lower_scale(boxes, [scaled.size[0] / size[0] for scaled in pyramid], target)
    features = boxes.new_full((len(boxes), regions.per_region.out_channels), -torch.inf)
    for i, scaled in enumerate(pyramid):
        here = (first == i) | (first == i - 1)
        if here.any():
            resized = boxes[here] * boxes.new_tensor(scale_factors(scaled.size, size))
            pooled = pool({"0": scaled.shared_map}, [resized], [scaled.size])
            features[here] = features[here].maximum(regions.per_region(pooled))
    return regions.with_context(features)


def lower_scale(boxes: Tensor, scales: Sequence[float], target: float) -> Tensor:
    """Return the index of the lower of the two adjacent scales for each box, int64 [R].

    Args:
        boxes: [R, 4].
        scales: By what the image is resized, ascending; of a single one all indices are 0.
        target: The side length, in pixels of the resized image, that a box should have: the sum of
            both distances from it is the least, in octaves of the square root of the area.
    """
    if len(scales) == 1:
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=SMALLEST).unbind(1)
    sides = (width * height).sqrt()[:, None] * boxes.new_tensor(scales)
    distances = (sides / target).log2().abs()
    return (distances[:, :-1] + distances[:, 1:]).argmin(1)
