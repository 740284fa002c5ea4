"""What the proposal net of localization and its R-CNN step share: errors, classes, pictures."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.data.examples import ObjectBatch
from src.data.object_data import ObjectData
from src.tasks.average_precision import gathered
from src.tasks.base import Metrics, Summary
from src.tasks.localization_error import Located, class_errors, localization_errors
from src.tasks.object_task import ObjectTask
from src.tasks.pictures import FOUND, TRUTH, draw_boxes, write_pictures

NAMES = {
    "localization_error": "localization error, class given,",
    "localization_error_top1": "top-1 localization error",
    "localization_error_top5": "top-5 localization error",
    "classification_error_top5": "top-5 classification error",
}


class LocalizationTask(ObjectTask):
    """Finds the box of the class that an image is of, and of the classes of a classifier.

    A subclass finds the boxes.

    Args:
        net: A net for classification; its classifier is removed.
        data: Says how images are prepared, and which classes there are.
        **common: Arguments of `ObjectTask`.

    Attributes:
        results: What was found in each image evaluated last that has an object, in order.
        classify: Returns the most probable classes of an image uint8 [3, H, W], from 1 on; None if
            only the image's own class is localized.
    """

    train_metrics = ("loss", "loss_object", "loss_box")
    eval_metrics: Sequence[str] = ("localization_error",)

    def __init__(self, net: nn.Module, data: ObjectData, **common: Any) -> None:
        super().__init__(net, data, **common)
        self.classify: nn.Module | None = None
        self.own_results: list[Located] = []
        self.results = self.own_results

    @abstractmethod
    def locate(self, image: Tensor, labels: Sequence[int]) -> Tensor:
        """Return the most probable box of each of some classes, [M, 4].

        Args:
            image: uint8 [3, H, W].
            labels: The classes, from 1 on.
        """

    def float32(self) -> torch.autocast:
        """Compute scores and boxes in float32, also where the net is in reduced precision."""
        return torch.autocast(self.device.type, enabled=False)

    def localize_classes_of(self, classify: nn.Module) -> None:
        """Localize from now on also the classes that a classifier finds, see `classify`."""
        self.classify = classify
        self.eval_metrics = tuple(NAMES)

    def validation_step(self, batch: ObjectBatch, _: int) -> None:
        """Find the objects of a batch; images without an object do not count."""
        for image, target in zip(*batch, strict=True):
            label, truth = main_objects(target)
            if not len(truth):
                continue
            classes = self.classify(image) if self.classify else []
            boxes = self.locate(image, [label, *classes])
            image_id = int(target["image_id"])
            self.own_results.append(Located(image_id, label, truth.cpu(), classes, boxes.cpu()))

    test_step = validation_step

    def pop_eval_metrics(self) -> Metrics:
        """Return the errors in percent of the images evaluated since the last call."""
        self.results, self.own_results = gathered(self.own_results), []
        return localization_errors(self.results)

    def on_evaluated(self, metrics: Metrics) -> None:
        """Let the schedule take note of an evaluation during training."""
        self.schedule.on_eval_error(metrics.get("localization_error", 100.0))

    def test_results(self, metrics: Mapping[str, float | None]) -> Summary:
        """Return the errors of a test, and that of each class, given the class."""
        per_class = {
            self.classes[label - 1]: error for label, error in class_errors(self.results).items()
        }
        errors = {f"test_{name}": metrics.get(name) for name in self.eval_metrics}
        return errors | {"test_localization_error_per_class": per_class}

    def describe_evaluation(self, row: Metrics, split: str) -> str:
        """Return the loss and the localization error."""
        error = row.get(f"{split}/localization_error", 100.0)
        return f"train loss {row['train/loss']:.3f}  {split} localization error {error:.1f}%"

    def describe_test(self, metrics: Metrics) -> str:
        """Return all errors."""
        return ", ".join(f"{NAMES[name]} {value:.2f}%" for name, value in metrics.items())

    def draw_examples(self, path: Path, data: ObjectData, count: int) -> None:
        """Draw the first test images with objects: true boxes above that found for the class."""
        truth: list[Tensor] = []
        found: list[Tensor] = []
        wanted = {result.image_id: result for result in self.results[:count]}
        for position in range(len(data.indices["test"])):
            if not wanted:
                break
            image, target = data.example("test", position)
            result = wanted.pop(int(target["image_id"]), None)
            if result is None:
                continue  # an image without objects
            for pictures, boxes, color in (
                (truth, result.truth, TRUTH),
                (found, result.boxes[:1], FOUND),
            ):
                labels = torch.full((len(boxes),), result.label)
                objects = {"boxes": boxes, "labels": labels}
                pictures.append(draw_boxes(image, objects, self.classes, color))
        write_pictures(path, truth, found)


def main_objects(target: Mapping[str, Tensor]) -> tuple[int, Tensor]:
    """Return the class of an image, which is that of its largest object, and its boxes [K, 4].

    Boxes without width or height, which a crop leaves of objects outside, are left out. An image
    without objects counts as one of the first class without any box.
    """
    counted = target["iscrowd"] == 0
    labels, boxes, areas = (target[key][counted] for key in ("labels", "boxes", "area"))
    if not len(labels):
        return 1, boxes
    label = labels[areas.argmax()]
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(1)
    return int(label), boxes[has_area & (labels == label)]
