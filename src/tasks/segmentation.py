"""Semantic segmentation: a fully convolutional net (Long et al. 2015) on one of our nets.

The paper names COCO segmentation among what its nets won, without a method or a number. The head is
torchvision's `FCNHead`; `model.dilate` makes the map finer that it works on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.models.segmentation.fcn import FCNHead

from src.data.examples import IGNORED, ObjectBatch
from src.data.object_data import ObjectData
from src.tasks.base import Metrics, Summary, gather
from src.tasks.object_task import ObjectTask
from src.tasks.pictures import draw_mask, write_pictures


class Segmenter(ObjectTask):
    """Trains and evaluates a segmenter on images of any size, with the masks of `Example`.

    Args:
        net: A net for classification; its classifier is removed.
        data: Says how images are normalized, and which classes there are.
        recipe: Of any task; segmentation has no options of its own.
        **common: Arguments of `ObjectTask`.

    Attributes:
        confusion: Pixels evaluated since the last reset, by true and by predicted class.
        ious: Of the last evaluation, in percent, by class; without classes that are neither in
            the masks nor predicted.
    """

    uses_regions = False
    train_metrics = ("loss",)
    eval_metrics = ("iou", "accuracy")

    ious: dict[str, float]

    def __init__(
        self,
        net: nn.Module,
        data: ObjectData,
        recipe: dict[str, Any],
        **common: Any,
    ) -> None:
        super().__init__(net, data, **common)
        num_classes = 1 + len(data.classes)  # the background is label 0
        self.head = FCNHead(net.last_channels, num_classes)
        self.confusion = MulticlassConfusionMatrix(
            num_classes, ignore_index=IGNORED, validate_args=False, dist_sync_fn=gather
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of normalized images [N, 3, H, W], float32 [N, classes, H, W]."""
        scores = self.head(self.net.last_map(images))  # type: ignore[operator]
        # float32 from here on: bf16 would round the interpolated scores and the loss.
        size = images.shape[2:]
        return F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)

    def training_step(self, batch: ObjectBatch, index: int) -> Tensor:
        """Return the mean loss of the pixels of a batch."""
        self.seed_step(index)  # the head has dropout
        images, masks = padded_batch(self.normalized(batch[0]), [t["mask"] for t in batch[1]])
        loss = pixel_loss(self(images), masks)
        self.train_meter.update(loss.detach()[None], len(images))
        return loss

    def validation_step(self, batch: ObjectBatch, _: int) -> None:
        """Count the pixels of a batch by true and by predicted class."""
        # One by one: with padding, the scores would depend on which images are in a batch.
        for image, target in zip(*batch, strict=True):
            self.confusion.update(self.predicted(image)[None], target["mask"].long()[None])

    test_step = validation_step

    def predicted(self, image: Tensor) -> Tensor:
        """Return the class of each pixel of an image uint8 [3, H, W], int64 [H, W]."""
        return self(self.normalized([image])[0][None])[0].argmax(0)

    def pop_eval_metrics(self) -> Metrics:
        """Return mean IoU and accuracy in percent of the images evaluated since the last call."""
        confusion = self.confusion.compute()  # of all processes
        self.confusion.reset()
        names = ["background", *self.classes]
        self.ious = {names[label]: 100 * iou for label, iou in class_ious(confusion).items()}
        if not self.ious:
            return {}  # no pixel counts
        return {
            "iou": sum(self.ious.values()) / len(self.ious),
            "accuracy": 100 * (confusion.trace() / confusion.sum()).item(),
        }

    def on_evaluated(self, metrics: Metrics) -> None:
        """Let the schedule take note of an evaluation during training."""
        self.schedule.on_eval_error(100 - metrics.get("iou", 0.0))

    def test_results(self, metrics: Mapping[str, float | None]) -> Summary:
        """Return IoU and accuracy of a test, and the IoU of each class."""
        means = {f"test_{name}": metrics.get(name) for name in self.eval_metrics}
        return means | {"test_iou_per_class": self.ious}

    def describe_evaluation(self, row: Metrics, split: str) -> str:
        """Return the loss and the mean IoU."""
        iou = row.get(f"{split}/iou", 0.0)
        return f"train loss {row['train/loss']:.3f}  {split} mean IoU {iou:.1f}"

    def describe_test(self, metrics: Metrics) -> str:
        """Return mean IoU, accuracy, and IoU of each class."""
        titles = {"iou": "mean IoU", "accuracy": "pixel accuracy"}
        means = [f"{titles[name]} {value:.1f}" for name, value in metrics.items()]
        classes = [f"{name} {iou:.1f}" for name, iou in self.ious.items()]
        return f"{', '.join(means)}; by class {', '.join(classes)}"

    def draw_examples(self, path: Path, data: ObjectData, count: int) -> None:
        """Draw the first test images: the true masks above the predicted ones."""
        self.eval()
        truth, found = [], []
        for position in range(min(count, len(data.indices["test"]))):
            image, target = data.example("test", position)
            with torch.no_grad():
                predicted = self.predicted(image.to(self.device)).byte().cpu()
            truth.append(draw_mask(image, target["mask"]))
            found.append(draw_mask(image, predicted))
        write_pictures(path, truth, found)


def padded_batch(images: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return images and masks as large as the largest ones, padded at the right and below.

    Args:
        images: Normalized, so that they are padded with the mean color.
        masks: Of the same sizes; the padding counts for no class.

    Returns:
        float32 [N, 3, H, W] and int64 [N, H, W].
    """
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
    padding = [(0, width - mask.shape[1], 0, height - mask.shape[0]) for mask in masks]
    padded = [F.pad(image, sides) for image, sides in zip(images, padding, strict=True)]
    classes = [F.pad(m, sides, value=IGNORED) for m, sides in zip(masks, padding, strict=True)]
    return torch.stack(padded), torch.stack(classes).long()


def pixel_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels that count; 0 if none does.

    Args:
        scores: float32 [N, classes, H, W].
        masks: int64 [N, H, W].
    """
    # As a list of pixels: CUDA has no deterministic loss of maps.
    pixels, classes = scores.movedim(1, -1).flatten(0, 2), masks.flatten()
    total = F.cross_entropy(pixels, classes, ignore_index=IGNORED, reduction="sum")
    # The mean of no pixels would be NaN.
    return total / (masks != IGNORED).sum().clamp(min=1)


def class_ious(confusion: Tensor) -> dict[int, float]:
    """Return the IoU of each class that is in the truth or predicted, by its label.

    Args:
        confusion: Pixels by true and by predicted class, int64 [classes, classes].
    """
    hits = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return {
        label: hit / pixels
        for label, (hit, pixels) in enumerate(zip(hits.tolist(), union.tolist(), strict=True))
        if pixels
    }
