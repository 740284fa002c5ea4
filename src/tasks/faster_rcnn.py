"""Faster R-CNN (Ren et al. 2015) on any of our nets, out of torchvision's parts.

As in Sec. 4.3 and Appendix A: all stages but the last are shared by the proposal net and by all
regions; regions are pooled before the last stage, which computes the features of each. What the
paper leaves open, and what torchvision does differently, is listed in experiments/README.md.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from src.models.vgg import VGG


class ReducedPrecision:
    """Calls a part of the net, in reduced precision if `enabled`, and returns float32.

    Everything else must be float32: in bf16, boxes of some hundred pixels are off by one.

    It is not a module: as one, it would give the parameters of the net a second name.
    """

    def __init__(self, part: Callable[[Tensor], Tensor], out_channels: int) -> None:
        self.part, self.out_channels, self.enabled = part, out_channels, False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features."""
        with torch.autocast(x.device.type, enabled=self.enabled):
            return self.part(x).float()


class RegionFeatures(nn.Module):
    """Pools regions from the shared map and computes their features.

    Args:
        pool: Pools boxes from the map.
        per_region: Computes features [R, channels] of pooled regions.
        context: Whether the features of the complete image follow those of each region: its global
            context (Appendix B).
    """

    def __init__(
        self, pool: MultiScaleRoIAlign, per_region: ReducedPrecision, context: bool
    ) -> None:
        super().__init__()
        self.pool, self.per_region, self.context = pool, per_region, context
        self.out_channels = per_region.out_channels * (2 if context else 1)

    def forward(
        self, maps: dict[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the features of all regions of a batch, [R, out_channels].

        Args:
            maps: The shared map by its name, [N, shared_channels, h, w].
            boxes: Of each image, [K, 4].
            sizes: Height and width of each image.
        """
        boxes = [self.with_image(b, size) for b, size in zip(boxes, sizes, strict=True)]
        features = self.per_region(self.pool(maps, boxes, sizes))
        return torch.cat([self.with_context(f) for f in features.split([len(b) for b in boxes])])

    def with_image(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return boxes [K, 4] after the box of the complete image, if there is context."""
        if not self.context:
            return boxes
        height, width = size
        return torch.cat([boxes.new_tensor([[0, 0, width, height]]), boxes])

    def with_context(self, features: Tensor) -> Tensor:
        """Return the features of the regions of an image, with its context.

        Args:
            features: Of the boxes of `with_image`.
        """
        if not self.context:
            return features
        image, regions = features[:1], features[1:]
        return torch.cat([regions, image.expand_as(regions)], 1)


def make_faster_rcnn(
    net: Any, num_classes: int, options: dict[str, Any], min_size: int, max_size: int
) -> FasterRCNN:
    """Make the detector around a net without its classifier.

    Args:
        net: Offers `shared_map` and `region_features`, see `ResidualNet`. Its parameters do not
            become parameters of the detector.
        num_classes: Number of classes, background not counted.
        options: `recipe.detector`, see conf/recipe/detection.yaml.
        min_size: Pixels of the shorter side to which images are resized.
        max_size: At most so many pixels of the longer side.

    Raises:
        ValueError: The size of the regions is not that of the net.
    """
    sizes, ratios = options["anchor_sizes"], options["anchor_ratios"]
    anchors = AnchorGenerator((tuple(sizes),), (tuple(ratios),))
    per_location = anchors.num_anchors_per_location()[0]
    region_size = options["region_size"] or net.region_size
    if isinstance(net, VGG) and region_size != net.region_size:
        raise ValueError(
            f"recipe.detector.region_size={region_size} does not fit the fc layers of a VGG net: "
            "set recipe.detector.region_size=null"
        )
    pool = MultiScaleRoIAlign(["0"], region_size, sampling_ratio=2)
    # Otherwise it guesses the scale from the first batch, which a resumed run does not see.
    pool.scales, pool.map_levels = [1 / net.shared_stride], initLevelMapper(0, 0)
    per_region = ReducedPrecision(net.region_features, net.region_channels)
    regions = RegionFeatures(pool, per_region, options["context"])
    before, after = options["proposals_before_nms"], options["proposals"]
    detector = FasterRCNN(
        ReducedPrecision(net.shared_map, net.shared_channels),
        min_size=min_size,
        max_size=max_size,
        # Images are normalized before, with numbers that the checkpoint keeps.
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=anchors,
        rpn_head=make_rpn_head(net.shared_channels, options["rpn_channels"], per_location),
        rpn_pre_nms_top_n_train=before[0],
        rpn_pre_nms_top_n_test=before[1],
        rpn_post_nms_top_n_train=after[0],
        rpn_post_nms_top_n_test=after[1],
        rpn_batch_size_per_image=options["rpn_anchors_per_image"],
        box_roi_pool=pool,
        box_head=nn.Identity(),
        box_predictor=FastRCNNPredictor(regions.out_channels, num_classes + 1),
        box_batch_size_per_image=options["regions_per_image"],
        box_nms_thresh=options["nms"],
        box_score_thresh=options["min_score"],
        box_detections_per_img=options["detections_per_image"],
    )
    # Pooling and the last stage in one: the context is computed per image.
    detector.roi_heads.box_roi_pool = regions
    return detector


def make_rpn_head(in_channels: int, channels: int, per_location: int) -> RPNHead:
    """Make the proposal net's layers: a 3x3 layer of so many channels, then scores and boxes."""
    head = RPNHead(channels, per_location)
    first = nn.Conv2d(in_channels, channels, 3, padding=1)
    # As torchvision initializes the layer that this one replaces.
    nn.init.normal_(first.weight, std=0.01)
    nn.init.constant_(first.bias, 0)  # type: ignore[arg-type]  # it has one
    head.conv[0][0] = first
    return head
