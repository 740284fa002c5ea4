"""Improvements of a trained detector in testing (Appendix B): refinement, scales, ensembles.

What the paper leaves open: the box that a region is pooled again from is that of its most probable
class; voting is over boxes with an IoU of at least 0.5 (Gidaris and Komodakis 2015).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from src.tasks.image_pyramid import (
    SMALLEST,
    ScaledImage,
    compute_map,
    pyramid_features,
    scale_factors,
)

Objects = dict[str, Tensor]
# The paper's shorter sides 200, 400, ..., 1000, of which 600 is the one of training.
SCALES = (1 / 3, 2 / 3, 1, 4 / 3, 5 / 3)
VOTING_IOU = 0.5


class DetectionProtocol(NamedTuple):
    """How a detector is tested.

    Attributes:
        refine: Whether to pool each region again from its regressed box, and to let boxes vote.
        shorter_sides: Pixels of the shorter side of the image at each scale at which regions are
            classified; empty for that of training.
    """

    refine: bool
    shorter_sides: tuple[int, ...]


def parse_protocol(name: str, min_size: int) -> DetectionProtocol:
    """Return the protocol of a name such as `refine`, `multiscale` or `refine+scales400-600`.

    Args:
        name: `center` for no improvement, or the names of several joined by `+`.
        min_size: Pixels of the shorter side in training.

    Raises:
        ValueError: There is no such protocol.
    """
    refine = False
    sides: tuple[int, ...] = ()
    for part in name.split("+"):
        if part == "refine" and not refine:
            refine = True
        elif part == "multiscale" and not sides:
            sides = tuple(round(min_size * scale) for scale in SCALES)
        elif re.fullmatch(r"scales[1-9]\d*(-[1-9]\d*)+", part) and not sides:
            sides = tuple(sorted(int(side) for side in part.removeprefix("scales").split("-")))
        elif name != "center":
            raise ValueError(
                f"protocol={name} does not apply to detection: set protocol=center, refine, "
                "multiscale, two scales or more such as scales400-600, or [refine,multiscale]"
            )
    return DetectionProtocol(refine, sides)


class ImagePredictor:
    """Predicts objects in one image by one detector or by several.

    Args:
        detectors: Share their classes.
        images: The image [3, H, W], normalized for each of the detectors.
        shorter_sides: As in `DetectionProtocol`.
    """

    def __init__(
        self,
        detectors: Sequence[FasterRCNN],
        images: Sequence[Tensor],
        shorter_sides: Sequence[int],
    ) -> None:
        self.detectors = detectors
        height, width = images[0].shape[1:]
        self.size = height, width
        self.proposals, self.pyramids = [], []
        for detector, image in zip(detectors, images, strict=True):
            usual = detector.transform.min_size[0]
            scaled, proposals = propose(detector, image)
            self.proposals.append(proposals)
            # The map at the scale of training exists already.
            pyramid = [
                scaled if side == usual else compute_map(detector, image, side)[0]
                for side in shorter_sides or [usual]
            ]
            self.pyramids.append(pyramid)

    def predict(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Classify regions, and regress their boxes.

        Args:
            boxes: In pixels of the image, [R, 4].

        Returns:
            Softmax scores [R, classes] and boxes [R, classes, 4], the background being class 0:
            means over the detectors.
        """
        scores, regressed = [], []
        for detector, pyramid in zip(self.detectors, self.pyramids, strict=True):
            heads = detector.roi_heads
            features = pyramid_features(heads.box_roi_pool, pyramid, boxes, self.size)
            logits, deltas = heads.box_predictor(features)
            scores.append(logits.softmax(1))
            regressed.append(heads.box_coder.decode(deltas, [boxes]))
        mean_boxes = torch.stack(regressed).mean(0)
        return torch.stack(scores).mean(0), clip_boxes_to_image(mean_boxes, self.size)


def detect(
    detectors: Sequence[FasterRCNN], images: Sequence[Tensor], protocol: DetectionProtocol
) -> Objects:
    """Return the objects in an image: `boxes`, `labels` and `scores`.

    Args:
        detectors: One, or several whose proposals are united and whose predictions are averaged.
        images: The image [3, H, W], normalized for each of the detectors.
        protocol: How they are tested.
    """
    predictor = ImagePredictor(detectors, images, protocol.shorter_sides)
    scores, boxes = predictor.predict(torch.cat(predictor.proposals))
    if protocol.refine:
        refined = predictor.predict(most_probable(scores, boxes))
        scores, boxes = (torch.cat(both) for both in zip((scores, boxes), refined, strict=True))
    heads = detectors[0].roi_heads
    candidates = above(scores, boxes, heads.score_thresh)
    kept = batched_nms(*(candidates[k] for k in ("boxes", "scores", "labels")), heads.nms_thresh)
    found = {key: values[kept[: heads.detections_per_img]] for key, values in candidates.items()}
    if protocol.refine:
        found["boxes"] = vote(found, candidates)
    return found


def propose(detector: FasterRCNN, image: Tensor) -> tuple[ScaledImage, Tensor]:
    """Return an image at the scale of training, and its proposals in pixels of the image."""
    scaled, padded = compute_map(detector, image, detector.transform.min_size[0])
    (boxes,), _ = detector.rpn(padded, {"0": scaled.shared_map})
    return scaled, boxes / boxes.new_tensor(scale_factors(scaled.size, image.shape[1:]))


def most_probable(scores: Tensor, boxes: Tensor) -> Tensor:
    """Return the box of the most probable class, but the background, of each region, [R, 4]."""
    best = 1 + scores[:, 1:].argmax(1)
    return boxes[torch.arange(len(boxes), device=boxes.device), best]


def above(scores: Tensor, boxes: Tensor, min_score: float) -> Objects:
    """Return the objects with a score above a minimum, all classes of all regions in one list.

    Args:
        scores: [R, classes], of which the background is class 0.
        boxes: [R, classes, 4], clipped to the image.
        min_score: The minimum.
    """
    region, label = (scores[:, 1:] > min_score).nonzero(as_tuple=True)
    label = label + 1
    found = {"boxes": boxes[region, label], "labels": label, "scores": scores[region, label]}
    kept = remove_small_boxes(found["boxes"], SMALLEST)
    return {key: values[kept] for key, values in found.items()}


def vote(found: Objects, candidates: Objects) -> Tensor:
    """Return the boxes of objects as the means of all boxes around them, weighted by their scores.

    Args:
        found: What non-maximum suppression kept of the candidates.
        candidates: All objects; those of the same class with an IoU of at least 0.5 vote.
    """
    overlap = box_iou(found["boxes"], candidates["boxes"]) >= VOTING_IOU
    votes = overlap & (found["labels"][:, None] == candidates["labels"])
    weights = votes * candidates["scores"]
    return weights @ candidates["boxes"] / weights.sum(1, keepdim=True)
