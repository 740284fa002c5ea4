"""Average precision of COCO, of detections gathered from all processes."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

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


def coco_ap(
    detections: Sequence[Objects], targets: Sequence[Objects]
) -> tuple[dict[str, float], dict[int, float]]:
    """Compute COCO's average precision in percent.

    Args:
        detections: For each image `boxes`, `scores` and `labels`.
        targets: For each image `boxes` and `labels`, and `iscrowd` and `area`.

    Returns:
        The metrics, without those that no object counts for, and AP of each class with objects.
    """
    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        class_metrics=True,
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
    classes, per_class = values["classes"].reshape(-1), values["map_per_class"].reshape(-1)
    return means, {
        int(label): 100 * value.item()
        for label, value in zip(classes, per_class, strict=True)
        if value >= 0
    }


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
