"""Average precision of COCO, of detections gathered from all processes."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

Objects = dict[str, Tensor]
# Our names, and those of torchmetrics: mean over IoU 0.50 to 0.95; at single IoUs; of objects of
# an area below 32^2, below 96^2 and above.
COCO_METRICS = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
}


class AveragePrecision(NamedTuple):
    """What COCO's evaluation gives, in percent.

    Attributes:
        means: Over the classes, by the names of `COCO_METRICS`; without those that no object counts
            for.
        per_class: AP of each class with objects, by its label.
        curves: At an IoU of 0.5, the precision of each such class at recalls of 0, 1, ... 100%.
    """

    means: dict[str, float]
    per_class: dict[int, float]
    curves: dict[int, list[float]]


def coco_ap(detections: Sequence[Objects], targets: Sequence[Objects]) -> AveragePrecision:
    """Compute COCO's average precision.

    Args:
        detections: For each image `boxes`, `scores` and `labels`.
        targets: For each image `boxes` and `labels`, and `iscrowd` and `area`.
    """
    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        class_metrics=True,
        extended_summary=True,
        sync_on_compute=False,  # gathered before, as it fails on unequal numbers of images
    )
    metric.warn_on_many_detections = False
    metric.update([*detections], [*targets])
    with contextlib.redirect_stdout(io.StringIO()):  # the backend prints
        values = metric.compute()
    # -1 stands for no objects of that size or class.
    means = {
        name: 100 * values[theirs].item()
        for name, theirs in COCO_METRICS.items()
        if values[theirs] >= 0
    }
    classes, aps = values["classes"].reshape(-1).tolist(), values["map_per_class"].reshape(-1)
    # [IoUs, recalls, classes, sizes, numbers of detections]: IoU 0.5, all sizes, 100 detections.
    curves = 100 * values["precision"][0, :, :, 0, -1]
    present = [i for i, ap in enumerate(aps.tolist()) if ap >= 0]
    return AveragePrecision(
        means,
        {classes[i]: 100 * aps[i].item() for i in present},
        {classes[i]: curves[:, i].tolist() for i in present},
    )


def gathered(own: list[Any]) -> list[Any]:
    """Return the items of all processes in the order of one process that has every image.

    Process r has the images r, r + world size, ...; the last ones may be missing on some.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return own
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]
