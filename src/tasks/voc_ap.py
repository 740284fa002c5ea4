"""Average precision of PASCAL VOC, with its rule for objects that are difficult to recognize."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

Objects = dict[str, Tensor]

METRICS = ("voc07", "voc")  # by 11 points, until VOC 2009; by all points, since 2010


class Matches(NamedTuple):
    """Detections of one class, from the highest score to the lowest, and how they count.

    Attributes:
        correct: Whether each detection is the first that matches its object, bool [D].
        objects: The number of objects that are to be found.
    """

    correct: np.ndarray
    objects: int


def voc_ap(
    detections: Sequence[Objects], targets: Sequence[Objects], metric: str, min_iou: float = 0.5
) -> dict[int, float]:
    """Compute VOC's average precision in percent of each class that has objects, by its label.

    VOC's boxes are inclusive, and so is its overlap: a box from pixel 1 to 10 is 10 pixels wide.
    The boxes here begin and end between pixels, which gives the same.

    Args:
        detections: For each image `boxes`, `scores` and `labels`.
        targets: For each image `boxes` and `labels`, and `iscrowd`, which here stands for
            `difficult`: such an object counts neither as found nor as missed.
        metric: One of `METRICS`.
        min_iou: The least overlap of a detection with its object.
    """
    area = eleven_point_ap if metric == "voc07" else all_point_ap
    labels = {int(x) for target in targets for x in target["labels"][target["iscrowd"] == 0]}
    return {
        label: 100 * area(match_class(detections, targets, label, min_iou))
        for label in sorted(labels)
    }


def match_class(
    detections: Sequence[Objects], targets: Sequence[Objects], label: int, min_iou: float
) -> Matches:
    """Match the detections of a class to objects: each to the one that it overlaps most."""
    scores, matched, objects = [], [], 0
    for found, target in zip(detections, targets, strict=True):
        is_found, is_there = found["labels"] == label, target["labels"] == label
        ious = box_iou(found["boxes"][is_found].double(), target["boxes"][is_there].double())
        difficult = target["iscrowd"][is_there] > 0
        # -1: no object; -2: a difficult one, so that the detection does not count.
        match = torch.full((len(ious),), -1)
        if ious.shape[1]:
            overlap, best = ious.max(1)
            match = torch.where(difficult[best], -2, best + objects)
            match[overlap < min_iou] = -1
        scores.append(found["scores"][is_found])
        matched.append(match)
        objects += len(difficult)

    # Stable: among equal scores, the order of the images decides.
    order = torch.cat(scores).sort(descending=True, stable=True).indices
    ranked = torch.cat(matched)[order].numpy()
    ranked = ranked[ranked != -2]
    correct = np.zeros(len(ranked), bool)
    # An object that is detected twice is found once; the second detection is wrong.
    correct[np.unique(ranked, return_index=True)[1]] = True
    correct &= ranked >= 0
    to_find = [(t["labels"] == label) & (t["iscrowd"] == 0) for t in targets]
    return Matches(correct, sum(int(mask.sum()) for mask in to_find))


def eleven_point_ap(matches: Matches) -> float:
    """Return the mean of the best precisions at recalls of at least 0, 0.1, ... 1."""
    found, precision = _curve(matches)
    # In integers: 0.1 * 3 is more than 0.3, and a recall of 0.3 would miss it.
    best = [precision[10 * found >= i * matches.objects] for i in range(11)]
    return sum(float(values.max(initial=0)) for values in best) / 11


def all_point_ap(matches: Matches) -> float:
    """Return the area below the best precision at each recall or a higher one."""
    _, precision = _curve(matches)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[matches.correct].sum()) / matches.objects


def _curve(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of objects found and the precision after each detection."""
    found = np.cumsum(matches.correct)
    return found, found / np.arange(1, len(found) + 1)
