"""Average precision is COCO's, to six digits, and the same for any division among processes."""

import contextlib
import io
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ranks import run_on_ranks

from src.tasks.average_precision import COCO_METRICS, coco_ap, gathered

CLASSES = 3


def random_images(count=30):
    """Return detections and targets: objects of all sizes, crowds, misses, and false alarms."""
    rng = np.random.default_rng(0)
    detections, targets = [], []
    for _ in range(count):
        objects = rng.integers(0, 6)
        corner, side = rng.uniform(0, 100, (objects, 2)), rng.uniform(5, 150, (objects, 2))
        boxes = np.concatenate([corner, corner + side], 1)
        labels = rng.integers(1, CLASSES + 1, objects)
        crowd = (rng.random(objects) < 0.1).astype(int)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "iscrowd": torch.tensor(crowd),
                "area": torch.tensor(side.prod(1) * rng.uniform(0.5, 1, objects)),
            }
        )
        moved = np.concatenate([boxes, boxes]) + rng.normal(0, 8, (2 * objects, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        renamed = np.where(rng.random(2 * objects) < 0.8, [*labels, *labels], 1)
        detections.append(
            {
                "boxes": torch.tensor(moved, dtype=torch.float32),
                "scores": torch.tensor(rng.random(2 * objects), dtype=torch.float32),
                "labels": torch.tensor(renamed),
            }
        )
    return detections, targets


def by_pycocotools(detections, targets):
    """Return the first six numbers of pycocotools' summary, in percent."""
    truth, found = [], []
    for image, (detection, target) in enumerate(zip(detections, targets, strict=True)):
        for box, label, crowd, area in zip(
            *(target[key].tolist() for key in ("boxes", "labels", "iscrowd", "area")), strict=True
        ):
            entry = {"id": len(truth) + 1, "image_id": image, "category_id": label}
            corners = [*box[:2], box[2] - box[0], box[3] - box[1]]
            truth.append(entry | {"bbox": corners, "iscrowd": crowd, "area": area})
        for box, score, label in zip(
            *(detection[key].tolist() for key in ("boxes", "scores", "labels")), strict=True
        ):
            corners = [*box[:2], box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": image, "category_id": label, "bbox": corners, "score": score}
            found.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(targets))],
            "annotations": truth,
            "categories": [{"id": i} for i in range(1, CLASSES + 1)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:6]


def test_average_precision_equals_that_of_pycocotools_to_six_digits():
    detections, targets = random_images()
    metrics = coco_ap(detections, targets).means
    expected = by_pycocotools(detections, targets)
    assert 5 < expected[0] < 95
    own = [f"{metrics[name] / 100:.6f}" for name in COCO_METRICS]
    assert own == [f"{value / 100:.6f}" for value in expected]


def test_perfect_detections_have_an_average_precision_of_100():
    _, targets = random_images()
    for target in targets:
        target["iscrowd"][:] = 0
    found = [{**t, "scores": torch.ones(len(t["labels"]))} for t in targets]
    metrics, per_class, curves = coco_ap(found, targets)
    assert metrics["ap"] == pytest.approx(100)
    assert [{*curves[label]} for label in (1, 2, 3)] == [{100}, {100}, {100}]
    assert per_class == {label: pytest.approx(100) for label in (1, 2, 3)}


def test_sizes_and_classes_without_objects_have_no_average_precision():
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([2])}
    found = {**target, "scores": torch.tensor([0.9])}
    metrics, per_class, curves = coco_ap([found], [target])
    assert {*metrics} == {"ap", "ap50", "ap75", "ap_small"}
    assert {*per_class} == {*curves} == {2}


def gather_share(count, world_size):
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        return gathered([*range(rank, count, world_size)])
    finally:
        dist.destroy_process_group()


def test_the_area_below_the_curves_at_an_iou_of_one_half_is_ap50():
    metrics, _, curves = coco_ap(*random_images())
    area = np.mean([np.mean(curve) for curve in curves.values()])
    assert area == pytest.approx(metrics["ap50"], abs=1e-5)  # float32


@pytest.mark.parametrize(("world_size", "count"), [(2, 9), (3, 10), (3, 2)])
def test_unequal_numbers_of_images_are_gathered_in_order(world_size, count):
    assert (
        run_on_ranks(world_size, gather_share, count, world_size) == [[*range(count)]] * world_size
    )
