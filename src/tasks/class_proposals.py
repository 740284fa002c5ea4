"""The proposal net of localization, which is per class (Appendix C).

At each place of the net's last map, 1x1 convolutions give every class a score and a box for each of
several anchors. What the paper leaves open is listed in experiments/README.md: here a score of a
class is learned from images of that class alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork


class ClassProposals(nn.Module):
    """Scores and boxes of each class, from the last map of a net.

    Args:
        in_channels: Channels of the map.
        stride: Pixels of the image for each step on the map.
        num_classes: Number of classes.
        options: `recipe.localizer`, see conf/recipe/detection.yaml.
    """

    def __init__(
        self, in_channels: int, stride: int, num_classes: int, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.stride, self.num_classes = stride, num_classes
        sizes, ratios = options["anchor_sizes"], options["anchor_ratios"]
        self.anchors_per_place = len(sizes) * len(ratios)
        # Of torchvision's proposal net, what matches anchors with objects, and its losses.
        self.matching = RegionProposalNetwork(
            AnchorGenerator((tuple(sizes),), (tuple(ratios),)),
            nn.Identity(),
            fg_iou_thresh=options["positive_iou"],
            bg_iou_thresh=options["negative_iou"],
            batch_size_per_image=options["anchors_per_image"],
            positive_fraction=0.5,
            # Not used: only its matching and its losses are.
            pre_nms_top_n={},
            post_nms_top_n={},
            nms_thresh=0.0,
        )
        outputs = self.anchors_per_place * num_classes
        self.scores = nn.Conv2d(in_channels, outputs, 1)
        self.deltas = nn.Conv2d(in_channels, 4 * outputs, 1)
        for layer in (self.scores, self.deltas):  # as those of torchvision's proposal net
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]  # it has one

    def forward(self, last_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores and box regressions of all classes, and the anchors that they are of.

        Args:
            last_map: float32 [N, in_channels, h, w].

        Returns:
            Logits [N, A, num_classes], regressions [N, A, num_classes, 4] and anchors [A, 4], for
            the A anchors of all places.
        """
        height, width = last_map.shape[2:]
        shape = len(last_map), self.anchors_per_place, self.num_classes
        scores = self.scores(last_map).view(*shape, height, width)
        deltas = self.deltas(last_map).view(*shape, 4, height, width)
        # The order of the anchors: by row, by column, and at each place by size and ratio.
        scores = scores.permute(0, 3, 4, 1, 2).flatten(1, 3)
        deltas = deltas.permute(0, 4, 5, 1, 2, 3).flatten(1, 3)
        return scores, deltas, self.anchors(height, width, last_map.device)

    def anchors(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return the anchors of a map in pixels of its image, [A, 4]."""
        generator = self.matching.anchor_generator
        generator.set_cell_anchors(torch.float32, device)
        # Its own forward derives the stride from the size of the image, and rounds it.
        stride = torch.tensor(self.stride, device=device)
        return generator.grid_anchors([[height, width]], [[stride, stride]])[0]

    def losses(
        self, last_map: Tensor, labels: Sequence[int], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of the scores and of the boxes of the class of each image.

        Args:
            last_map: float32 [N, in_channels, h, w].
            labels: The class of each image, from 1 on.
            boxes: Its objects, [K, 4]; without any, all anchors are background.
        """
        scores, deltas, anchors = self(last_map)
        of_image = torch.arange(len(labels), device=last_map.device)
        classes = torch.tensor(labels, device=last_map.device) - 1
        all_anchors = [anchors] * len(labels)
        is_object, matched = self.matching.assign_targets_to_anchors(
            all_anchors, [{"boxes": objects} for objects in boxes]
        )
        return self.matching.compute_loss(
            scores[of_image, :, classes].flatten()[:, None],
            deltas[of_image, :, classes].flatten(0, 1),
            is_object,
            self.matching.box_coder.encode(matched, all_anchors),
        )

    def top(self, last_map: Tensor, labels: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """Return the highest scores of each of some classes [M, K], and their boxes [M, K, 4].

        Args:
            last_map: Of one image, float32 [1, in_channels, h, w].
            labels: The classes, from 1 on.
            count: The greatest K; it is less where there are fewer anchors.
        """
        scores, deltas, anchors = self(last_map)
        classes = torch.tensor(labels, device=last_map.device) - 1
        best, places = scores[0, :, classes].T.topk(min(count, len(anchors)))
        chosen = deltas[0, places, classes[:, None]].flatten(0, 1)
        decode = self.matching.box_coder.decode_single
        return best, decode(chosen, anchors[places.flatten()]).view(*places.shape, 4)
