"""The R-CNN step of localization (Appendix C): proposals are warped, classified and regressed.

Unlike in Fast R-CNN each region goes through the complete net, and a step learns from one region of
each of many images, as the proposals of one image are alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, clip_boxes_to_image, roi_align

from src.data.examples import ObjectBatch
from src.data.object_data import ObjectData
from src.tasks.localization import Localizer
from src.tasks.localization_task import LocalizationTask, main_objects
from src.tasks.localization_views import LocalizationProtocol


class RCNN(LocalizationTask):
    """Trains and evaluates a net on the proposals of a localizer, which it does not change.

    Args:
        net: A net for classification; its classifier is removed.
        data: Says how images are prepared, and which classes there are.
        recipe: Has the options under `rcnn`, see conf/recipe/detection.yaml.
        localizer: Proposes the boxes of a class.
        **common: Arguments of `ObjectTask`.

    Raises:
        ValueError: The recipe has no options for this task, or the data are not complete images.
    """

    uses_regions = True  # all layers but the classifier are needed

    def __init__(
        self,
        net: Any,
        data: ObjectData,
        recipe: dict[str, Any],
        localizer: Localizer,
        **common: Any,
    ) -> None:
        if "rcnn" not in recipe:
            raise ValueError("task=rcnn needs a recipe for it, such as recipe=scenes")
        if data.crop or data.scales:
            raise ValueError(
                "task=rcnn learns from complete images: set data.crop=0 data.scales=null"
            )
        super().__init__(net, data, **common)
        options = recipe["rcnn"]
        self.count, self.side = options["proposals"], options["side"]
        self.positive_iou = options["positive_iou"]
        # In a tuple it is not a submodule: it is neither trained nor saved with this module.
        self.localizers = (localizer.eval(),)
        self.coder = localizer.proposals.matching.box_coder
        self.test_by("center")
        self.scores = nn.Linear(net.region_channels, len(data.classes))
        self.deltas = nn.Linear(net.region_channels, 4 * len(data.classes))
        for layer in (self.scores, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)

    @property
    def localizer(self) -> Localizer:
        """The localizer, on the device of the net."""
        (localizer,) = self.localizers
        return localizer.to(self.device)

    def parse_protocol(self, name: str) -> LocalizationProtocol:
        """Return what the localizer sees of a test image.

        Raises:
            ValueError: There is no such protocol.
        """
        return self.localizers[0].parse_protocol(name)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R, classes] and box regressions [R, classes, 4] of warped regions."""
        features = self.net(regions).float()
        with self.float32():
            return self.scores(features), self.deltas(features).unflatten(1, (-1, 4))

    def warp(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return regions of an image, normalized and resized to squares, [R, 3, side, side].

        Args:
            image: uint8 [3, H, W].
            boxes: [R, 4].
        """
        normalized = self.normalized([image])[0][None]
        return roi_align(normalized, [boxes], self.side, aligned=True)

    def training_step(self, batch: ObjectBatch, index: int) -> Tensor:
        """Return the loss of one proposal of each image of a batch, for the class of its image."""
        self.seed_step(index)  # for the proposal
        localizer = self.localizer
        dense = localizer.parse_protocol("dense")
        images, targets = batch
        labels, truth = zip(*map(main_objects, targets), strict=True)
        boxes = []
        with torch.no_grad():
            for image, label in zip(images, labels, strict=True):
                proposals = localizer.propose(image, [label], self.count, dense)[0]
                boxes.append(proposals[torch.randint(len(proposals), (1,))])
        pairs = zip(images, boxes, strict=True)
        scores, deltas = self(torch.cat([self.warp(image, box) for image, box in pairs]))
        classes = torch.tensor(labels, device=self.device) - 1
        of_image = torch.arange(len(images), device=self.device)
        own = scores[of_image, classes], deltas[of_image, classes]
        with self.float32():
            losses = self.region_losses(*own, torch.cat(boxes), truth)
        return self.update_losses(losses, len(images))

    def locate(self, image: Tensor, labels: Sequence[int]) -> Tensor:
        """Return the most probable box of each of some classes, [M, 4]."""
        proposals = self.localizer.propose(image, labels, self.count, self.protocol)
        found = [
            self.best_box(image, boxes, label)
            for boxes, label in zip(proposals, labels, strict=True)
        ]
        return clip_boxes_to_image(torch.stack(found), (image.shape[1], image.shape[2]))

    def best_box(self, image: Tensor, boxes: Tensor, label: int) -> Tensor:
        """Return the regressed box of the proposal [R, 4] with the highest score of a class."""
        scores, deltas = self(self.warp(image, boxes))
        best = scores[:, label - 1].argmax()
        return self.coder.decode_single(deltas[best, label - 1][None], boxes[best][None])[0]

    def region_losses(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, truth: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of the scores and of the boxes of one region of each image.

        Args:
            scores: Logits of the class of each image, [N].
            deltas: Box regressions likewise, [N, 4].
            boxes: The regions, [N, 4].
            truth: The objects of each image, [K, 4]; a region without any is background.
        """
        goals, positive = torch.zeros_like(boxes), torch.zeros_like(scores)
        for i, (box, objects) in enumerate(zip(boxes, truth, strict=True)):
            overlap = box_iou(box[None], objects)[0]
            if (overlap >= self.positive_iou).any():
                positive[i] = 1
                nearest = objects[overlap.argmax()]
                goals[i] = self.coder.encode_single(nearest[None], box[None])[0]
        loss_object = F.binary_cross_entropy_with_logits(scores, positive)
        # The mean over all regions, and bent at 1/9, as in the proposal net.
        per_box = F.smooth_l1_loss(deltas, goals, beta=1 / 9, reduction="none").sum(1)
        return loss_object, (per_box * positive).sum() / len(boxes)
