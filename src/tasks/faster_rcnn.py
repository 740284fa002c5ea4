"""Faster R-CNN (Ren et al. 2015) on any of our nets, out of torchvision's parts.

As in Sec. 4.3 and Appendix A: all stages but the last are shared by the proposal net and by all
regions; regions are pooled before the last stage, which computes the features of each. What the
paper leaves open, and what torchvision does differently, is listed in experiments/README.md.
"""

from collections.abc import Callable
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

    It is no module, so that the parameters of the net have one name only.
    """

    def __init__(self, part: Callable[[Tensor], Tensor], out_channels: int) -> None:
        self.part, self.out_channels, self.enabled = part, out_channels, False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features."""
        with torch.autocast(x.device.type, enabled=self.enabled):
            return self.part(x).float()


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
    before, after = options["proposals_before_nms"], options["proposals"]
    return FasterRCNN(
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
        box_head=ReducedPrecision(net.region_features, net.region_channels),
        box_predictor=FastRCNNPredictor(net.region_channels, num_classes + 1),
        box_batch_size_per_image=options["regions_per_image"],
        box_nms_thresh=options["nms"],
        box_score_thresh=options["min_score"],
        box_detections_per_img=options["detections_per_image"],
    )


def make_rpn_head(in_channels: int, channels: int, per_location: int) -> RPNHead:
    """Make the proposal net's layers: a 3x3 layer of so many channels, then scores and boxes."""
    head = RPNHead(channels, per_location)
    first = nn.Conv2d(in_channels, channels, 3, padding=1)
    # As torchvision initializes the layer that this one replaces.
    nn.init.normal_(first.weight, std=0.01)
    nn.init.constant_(first.bias, 0)  # type: ignore[arg-type]  # it has one
    head.conv[0][0] = first
    return head
