"""Localization by a proposal net that is per class (Appendix C)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from src.data.examples import ObjectBatch
from src.data.object_data import ObjectData
from src.tasks.class_proposals import ClassProposals
from src.tasks.localization_task import LocalizationTask, main_objects
from src.tasks.localization_views import LocalizationProtocol, make_views, parse_protocol


class Localizer(LocalizationTask):
    """Trains and evaluates a proposal net on images of any size, with the targets of `Example`.

    Args:
        net: A net for classification; its classifier is removed.
        data: Says how images are prepared, and which classes there are.
        recipe: Has the options under `localizer`, see conf/recipe/detection.yaml.
        **common: Arguments of `ObjectTask`.

    Raises:
        ValueError: The recipe has no options for localization.
    """

    uses_regions = False

    def __init__(
        self,
        net: Any,
        data: ObjectData,
        recipe: dict[str, Any],
        **common: Any,
    ) -> None:
        if "localizer" not in recipe:
            raise ValueError("task=localization needs a recipe for it, such as recipe=scenes")
        super().__init__(net, data, **common)
        options = recipe["localizer"]
        self.shorter_side, self.crop = options["shorter_side"], options["crop"]
        self.proposals = ClassProposals(
            net.last_channels, net.last_stride, len(data.classes), options
        )
        self.test_by("center")

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Return the last map of images uint8 [3, H, W] of one size, float32.

        Raises:
            ValueError: The images differ in size.
        """
        sizes = {tuple(image.shape[1:]) for image in images}
        if len(sizes) > 1:
            several = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
            raise ValueError(
                f"the training images of a batch differ in size ({several}): set data.crop=SIDE no "
                "larger than the smallest of them, or data.scales=[SIDE,SIDE] as well"
            )
        return self.net.last_map(torch.stack(self.normalized(images))).float()  # type: ignore[operator]

    def training_step(self, batch: ObjectBatch, index: int) -> Tensor:
        """Return the loss of a batch: of the scores and boxes of the class of each image."""
        self.seed_step(index)  # torchvision samples anchors
        images, targets = batch
        labels, boxes = zip(*map(main_objects, targets), strict=True)
        last_map = self(images)
        with self.float32():
            losses = self.proposals.losses(last_map, labels, boxes)
        return self.update_losses(losses, len(images))

    def parse_protocol(self, name: str) -> LocalizationProtocol:
        """Return what is seen of a test image.

        Raises:
            ValueError: There is no such protocol.
        """
        return parse_protocol(name, self.shorter_side)

    def locate(self, image: Tensor, labels: Sequence[int]) -> Tensor:
        """Return the most probable box of each of some classes, [M, 4]."""
        return self.propose(image, labels, 1, self.protocol)[:, 0]

    def propose(
        self, image: Tensor, labels: Sequence[int], count: int, protocol: LocalizationProtocol
    ) -> Tensor:
        """Return the most probable boxes of each of some classes, by falling score.

        Args:
            image: uint8 [3, H, W].
            labels: The classes, from 1 on.
            count: The number of boxes of a class.
            protocol: What is seen of the image.

        Returns:
            [M, K, 4]; K is less than `count` where all views together have fewer anchors.
        """
        scores, boxes = [], []
        for view in make_views(image, protocol, self.crop):
            last_map = self([view.image])
            with self.float32():
                best, found = self.proposals.top(last_map, labels, count)
            scores.append(best)
            boxes.append(view.in_image(found))
        all_scores, all_boxes = torch.cat(scores, 1), torch.cat(boxes, 1)
        order = all_scores.topk(min(count, all_scores.shape[1]), 1).indices
        best_boxes = all_boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return clip_boxes_to_image(best_boxes, (image.shape[1], image.shape[2]))
