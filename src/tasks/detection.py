"""Object detection: Faster R-CNN on one of our nets, trained jointly (Sec. 4.3, Appendix A)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from src.data.examples import ObjectBatch
from src.data.object_data import ObjectData
from src.runs.run_dir import RunDir
from src.tables import write_csv
from src.tasks.average_precision import COCO_METRICS, AveragePrecision, coco_ap, gathered
from src.tasks.base import EXAMPLES, Metrics, Summary
from src.tasks.detection_protocols import DetectionProtocol, Objects, detect, parse_protocol
from src.tasks.faster_rcnn import make_faster_rcnn
from src.tasks.object_task import ObjectTask
from src.tasks.pictures import FOUND, TRUTH, draw_boxes, write_pictures
from src.tasks.voc_ap import METRICS, voc_ap

Result = tuple[int, dict[str, Tensor], dict[str, Tensor]]  # image id, detections, target

# How the metrics are printed.
NAMES = dict(
    zip(COCO_METRICS, ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"), strict=True)
) | {"voc_ap": "VOC AP"}
# Our names of the four losses, and torchvision's.
LOSSES = {
    "loss_class": "loss_classifier",
    "loss_box": "loss_box_reg",
    "loss_rpn_object": "loss_objectness",
    "loss_rpn_box": "loss_rpn_box_reg",
}


class Detector(ObjectTask):
    """Trains and evaluates a detector on images of any size, with the targets of `Example`.

    Args:
        net: A net for classification; its classifier is removed.
        data: Says how images are prepared, and which classes there are.
        recipe: Has the options under `detector`, see conf/recipe/detection.yaml.
        **common: Arguments of `ObjectTask`.

    Raises:
        ValueError: The recipe has no options for detection, or the metric of the data is unknown.

    Attributes:
        results: Image id, detections and target of each image evaluated last, in order.
        precision: What the last evaluation gave.
        voc_precision: VOC's AP of each class by its label, if the data have that metric.
        protocol: How it is tested.
        others: Detectors that it is tested together with.
    """

    uses_regions = True
    train_metrics = ("loss", *LOSSES)
    eval_metrics: Sequence[str] = tuple(COCO_METRICS)

    def __init__(
        self,
        net: nn.Module,
        data: ObjectData,
        recipe: dict[str, Any],
        **common: Any,
    ) -> None:
        if "detector" not in recipe:
            raise ValueError("task=detection needs a recipe for it, such as recipe=scenes")
        if data.crop or data.scales:
            raise ValueError(
                "task=detection learns from complete images at one scale, data.min_size: set "
                "data.crop=0 data.scales=null"
            )
        if data.metric not in ("coco", *METRICS):
            raise ValueError(f"data.metric={data.metric} is not one of coco, {', '.join(METRICS)}")
        super().__init__(net, data, **common)
        self.metric = data.metric
        if self.metric in METRICS:
            self.eval_metrics = (*COCO_METRICS, "voc_ap")
        self.min_size = data.min_size
        sizes = data.min_size, data.max_size
        self.detector = make_faster_rcnn(net, len(data.classes), recipe["detector"], *sizes)
        self.test_by("center")
        self.own_results: list[Result] = []
        self.results = self.own_results
        self.voc_precision: dict[int, float] = {}

    precision: AveragePrecision
    protocol: DetectionProtocol
    others: nn.ModuleList

    def forward(self, batch: ObjectBatch) -> Any:
        """Return the losses of a batch in training, and its detections in evaluation."""
        images, targets = batch  # the images uint8
        with self.only_net_in_reduced_precision([self]):
            return self.detector(self.normalized(images), targets)

    @contextmanager
    def only_net_in_reduced_precision(self, detectors: Iterable["Detector"]) -> Iterator[None]:
        """Compute in float32, but for the nets of some detectors if Lightning asks for less."""
        device = self.device.type
        reduced = torch.is_autocast_enabled(device)
        for own in (member.detector for member in detectors):
            own.backbone.enabled = own.roi_heads.box_roi_pool.per_region.enabled = reduced
        with torch.autocast(device, enabled=False):
            yield

    def parse_protocol(self, name: str) -> DetectionProtocol:
        """Return a protocol of Appendix B.

        Raises:
            ValueError: There is no such protocol.
        """
        return parse_protocol(name, self.min_size)

    def test_by(self, protocol: str, others: Sequence[ObjectTask] = ()) -> None:
        """Test by a protocol of Appendix B from now on, with detectors of the same classes.

        Raises:
            ValueError: There is no such protocol.
        """
        super().test_by(protocol)
        self.others = nn.ModuleList(others)

    def detect(self, images: Sequence[Tensor]) -> list[Objects]:
        """Return the objects in images uint8 [3, H, W], by the protocol of `test_by`."""
        members: list[Detector] = [self, *self.others]
        if len(members) == 1 and not any(self.protocol):
            return self((images, None))
        nets = [member.detector for member in members]
        with self.only_net_in_reduced_precision(members):
            return [
                detect(nets, [m.normalized([image])[0] for m in members], self.protocol)
                for image in images
            ]

    def training_step(self, batch: ObjectBatch, index: int) -> Tensor:
        """Return the loss of a batch."""
        self.seed_step(index)  # torchvision samples anchors and regions
        losses = self(batch)
        return self.update_losses([losses[name] for name in LOSSES.values()], len(batch[0]))

    def validation_step(self, batch: ObjectBatch, _: int) -> None:
        """Detect the objects of a batch."""
        for target, found in zip(batch[1], self.detect(batch[0]), strict=True):
            self.own_results.append((int(target["image_id"]), on_cpu(found), on_cpu(target)))

    test_step = validation_step

    def pop_eval_metrics(self) -> Metrics:
        """Return the average precisions in percent of the images evaluated since the last call."""
        self.results, self.own_results = gathered(self.own_results), []
        _, detections, targets = zip(*self.results, strict=True)
        self.precision = coco_ap(detections, targets)
        if self.metric not in METRICS:
            return self.precision.means
        self.voc_precision = voc_ap(detections, targets, self.metric)
        aps = self.voc_precision.values()
        return self.precision.means | ({"voc_ap": mean(aps)} if aps else {})

    def on_evaluated(self, metrics: Metrics) -> None:
        """Let the schedule take note of an evaluation during training."""
        self.schedule.on_eval_error(100 - metrics.get("ap", 0.0))

    def test_results(self, metrics: Mapping[str, float | None]) -> Summary:
        """Return the average precisions of a test, over all classes and of each."""
        per_class = {"test_ap_per_class": self.by_class(self.precision.per_class)}
        if self.metric in METRICS:
            per_class["test_voc_ap_per_class"] = self.by_class(self.voc_precision)
        return {f"test_{name}": metrics.get(name) for name in self.eval_metrics} | per_class

    def describe_evaluation(self, row: Metrics, split: str) -> str:
        """Return the loss and the average precision."""
        ap, ap50 = (row.get(f"{split}/{name}", 0.0) for name in ("ap", "ap50"))
        return f"train loss {row['train/loss']:.3f}  {split} AP {ap:.1f}  AP50 {ap50:.1f}"

    def describe_test(self, metrics: Metrics) -> str:
        """Return all average precisions, and those of the classes."""
        means = [f"{NAMES[name]} {value:.1f}" for name, value in metrics.items()]
        # VOC's own number, where it is the metric of the data.
        per_class = self.by_class(self.voc_precision or self.precision.per_class)
        classes = [f"{name} {ap:.1f}" for name, ap in per_class.items()]
        measure = "VOC AP" if self.voc_precision else "AP"
        return f"{', '.join(means)}; {measure} by class: {', '.join(classes)}"

    def by_class(self, values: dict[int, Any]) -> dict[str, Any]:
        """Return values by the name of their class instead of its label."""
        return {self.classes[label - 1]: value for label, value in values.items()}

    def write_artifacts(self, run_dir: RunDir, data: ObjectData, examples: int = EXAMPLES) -> None:
        """Write the detections, some of them in a picture, and precision by recall."""
        run_dir.write_json("detections", coco_detections(self.results, data.category_ids))
        curves = self.by_class(self.precision.curves)
        write_csv(
            run_dir.path / "precision_recall.csv",
            [{"recall": i, **{k: v[i] for k, v in curves.items()}} for i in range(101)],
        )
        super().write_artifacts(run_dir, data, examples)

    def draw_examples(self, path: Path, data: ObjectData, count: int) -> None:
        """Draw the first test images: the objects that are there above those that were found."""
        truth, found = [], []
        for position, (_, detections, target) in enumerate(self.results[:count]):
            image = data.example("test", position).image
            truth.append(draw_boxes(image, target, self.classes, TRUTH))
            found.append(draw_boxes(image, detections, self.classes, FOUND))
        write_pictures(path, truth, found)


def coco_detections(results: Sequence[Result], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return detections in COCO's form, with boxes as x, y, width and height.

    Args:
        results: Of each image.
        category_ids: The numbers of label 1, 2, ... in the dataset's own files.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label) - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for image_id, found, _ in results
        for (x1, y1, x2, y2), label, score in zip(
            *(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True
        )
    ]


def on_cpu(objects: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of some objects in the memory of the CPU."""
    return {name: values.cpu() for name, values in objects.items()}
