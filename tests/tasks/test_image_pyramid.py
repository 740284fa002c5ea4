"""Pooling regions at several scales of an image."""

import pytest
import torch
from small_tasks import make_detector

from src.tasks.image_pyramid import ScaledImage, compute_map, lower_scale, pyramid_features


@pytest.mark.parametrize("side", [32, 64, 96])
def test_the_limit_of_the_longer_side_grows_with_the_scale(find, side):
    module, _ = make_detector(find)  # trained at 64 pixels, of the longer side as well
    for image, size in (
        (torch.rand(3, 64, 64), (side, side)),
        (torch.rand(3, 40, 160), (side // 4, side)),
    ):
        assert compute_map(module.detector, image, side)[0].size == size


# Octaves from 16 pixels at scales 0.5, 1 and 2, for 16 pixels 1 + 0 and 0 + 1: the first of equals.
@pytest.mark.parametrize(("side", "lower"), [(1, 1), (15, 1), (16, 0), (17, 0), (40, 0)])
def test_regions_are_pooled_at_the_two_scales_that_bring_them_nearest_to_the_target(side, lower):
    box = torch.tensor([[3.0, 5.0, 3 + side / 2, 5 + 2 * side]])  # the side of an equal square
    assert lower_scale(box, [0.5, 1.0, 2.0], 16).tolist() == [lower]


def test_a_single_scale_serves_all_regions():
    assert lower_scale(torch.rand(3, 4), [1.0], 16).tolist() == [0, 0, 0]


def test_of_two_scales_the_greater_value_of_each_feature_counts(find):
    module, _ = make_detector(find, "recipe.detector.region_size=1")
    regions = module.detector.roi_heads.box_roi_pool
    regions.per_region.part = lambda x: x.flatten(1)[:, :2]
    regions.per_region.out_channels = 2
    # Channels that are constant over each map, so that pooling does not change them.
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0], [9.0, 9.0]])
    sizes = [(32, 32), (64, 64), (128, 128)]
    pyramid = [
        ScaledImage(value[None, :, None, None].expand(1, 2, h // 2, w // 2), (h, w))
        for value, (h, w) in zip(values, sizes, strict=True)
    ]
    # A region of one step on the map is 2 pixels: as large as the first box at scale 1, and the
    # second at scale 2.
    boxes = torch.tensor([[10.0, 10, 14, 14], [10, 10, 11, 11]])
    features = pyramid_features(regions, pyramid, boxes, (64, 64))
    assert features.tolist() == [[3, 5], [9, 9]]
