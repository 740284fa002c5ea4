"""VOC's average precision: a published example, and a second version of the devkit's loop."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.tasks.voc_ap import voc_ap

ORACLE = Path(__file__).parent / "voc_oracle"
CLASSES = 3


def read_oracle(folder):
    """Return the objects of its seven images, whose corners are inclusive."""
    images = []
    for path in sorted((ORACLE / folder).glob("*.txt")):
        numbers = np.array([line.split()[1:] for line in path.read_text().splitlines()], float)
        corners = np.concatenate([numbers[:, -4:-2], numbers[:, -4:-2] + numbers[:, -2:] + 1], 1)
        images.append(
            {
                "boxes": torch.tensor(corners),
                "labels": torch.ones(len(corners), dtype=torch.int64),
                "scores": torch.tensor(numbers[:, 0]),
                "iscrowd": torch.zeros(len(corners)),
            }
        )
    return images


@pytest.mark.parametrize(("metric", "published"), [("voc07", 26.84), ("voc", 24.56)])
def test_average_precision_of_the_published_example(metric, published):
    found, targets = read_oracle("detections"), read_oracle("groundtruths")
    assert (len(found), len(targets)) == (7, 7)
    # 24.56 is the sum of four areas, each cut after four digits; exactly it is 24.569.
    assert voc_ap(found, targets, metric, min_iou=0.3)[1] == pytest.approx(published, abs=0.01)


def random_images(count=40):
    """Return detections and targets with difficult objects, misses, and several detections each."""
    rng = np.random.default_rng(0)
    detections, targets = [], []
    for _ in range(count):
        objects = rng.integers(0, 6)
        corner, side = rng.integers(0, 100, (objects, 2)), rng.integers(20, 80, (objects, 2))
        boxes, labels = np.concatenate([corner, corner + side], 1), rng.integers(1, 4, objects)
        difficult = (rng.random(objects) < 0.25).astype(int)
        moved = np.concatenate([boxes] * 3) + rng.integers(-9, 10, (3 * objects, 4))
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": difficult})
        # Few different scores, so that some are equal.
        scores = rng.integers(0, 50, 3 * objects) / 50
        detections.append({"boxes": moved, "labels": np.tile(labels, 3), "scores": scores})
    return [
        [{k: torch.as_tensor(v) for k, v in image.items()} for image in images]
        for images in (detections, targets)
    ]


def devkit_ap(detections, targets, label, eleven_points):
    """VOCevaldet.m, loop by loop: boxes inclusive, one detection after the other."""
    ranked = sorted(
        (
            (-score.item(), image, position)
            for image, found in enumerate(detections)
            for position, score in enumerate(found["scores"])
            if found["labels"][position] == label
        ),
    )
    taken, tp, fp = set(), [], []
    for _, image, position in ranked:
        x1, y1, x2, y2 = detections[image]["boxes"][position].tolist()
        best, chosen = -np.inf, None
        for j, (box, own) in enumerate(
            zip(targets[image]["boxes"].tolist(), targets[image]["labels"], strict=True)
        ):
            if own != label:
                continue
            # Inclusive corners end a pixel earlier, and widths have a pixel more.
            width = min(x2, box[2]) - 1 - max(x1, box[0]) + 1
            height = min(y2, box[3]) - 1 - max(y1, box[1]) + 1
            if width > 0 and height > 0:
                areas = (x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1])
                overlap = width * height / (areas - width * height)
                if overlap > best:
                    best, chosen = overlap, j
        right = wrong = 0
        if best >= 0.5:
            if not targets[image]["iscrowd"][chosen]:
                right, wrong = (0, 1) if (image, chosen) in taken else (1, 0)
                taken.add((image, chosen))
        else:
            wrong = 1
        tp.append(right)
        fp.append(wrong)
    positives = sum(int(((t["labels"] == label) & (t["iscrowd"] == 0)).sum()) for t in targets)
    found, wrong = np.cumsum(tp), np.cumsum(fp)
    recall = np.concatenate([[0], found / positives, [1]])
    precision = np.concatenate([[0], found / np.maximum(found + wrong, 1), [0]])
    if eleven_points:
        at = [precision[recall >= t - 1e-12].max() for t in np.linspace(0, 1, 11)]
        return np.mean(at)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = [i for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in steps)


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_average_precision_equals_that_of_the_devkit_with_difficult_objects(metric):
    detections, targets = random_images()
    own = voc_ap(detections, targets, metric)
    expected = {
        label: 100 * devkit_ap(detections, targets, label, metric == "voc07")
        for label in range(1, CLASSES + 1)
    }
    assert own == pytest.approx(expected, abs=1e-9)
    assert min(own.values()) > 10
    assert max(own.values()) < 90


def objects(*boxes, scores=None, difficult=None):
    entries = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.ones(len(boxes)).long()}
    if scores is not None:
        return entries | {"scores": torch.tensor(scores)}
    return entries | {"iscrowd": torch.tensor(difficult or [0] * len(boxes))}


BOX, OTHER = [0.0, 0, 10, 10], [50.0, 50, 60, 60]


@pytest.mark.parametrize(
    ("found", "target", "expected"),
    [
        pytest.param(objects(BOX, scores=[0.5]), objects(BOX), 100, id="found"),
        pytest.param(objects(scores=[]), objects(BOX), 0, id="missed"),
        pytest.param(objects(OTHER, BOX, scores=[0.9, 0.5]), objects(BOX), 50, id="one-too-many"),
        pytest.param(
            objects(BOX, BOX, OTHER, scores=[0.9, 0.8, 0.7]),
            objects(BOX, OTHER),
            100 * (1 + 2 / 3) / 2,
            id="found-twice",
        ),
        pytest.param(
            objects(OTHER, OTHER, BOX, scores=[0.9, 0.8, 0.5]),
            objects(BOX, OTHER, difficult=[0, 1]),
            100,
            id="difficult-found",
        ),
        pytest.param(
            objects(BOX, scores=[0.5]),
            objects(BOX, OTHER, difficult=[0, 1]),
            100,
            id="difficult-missed",
        ),
    ],
)
def test_the_rules_of_matching(found, target, expected):
    assert voc_ap([found], [target], "voc")[1] == pytest.approx(expected)


def test_a_class_with_difficult_objects_alone_has_no_average_precision():
    assert voc_ap([objects(BOX, scores=[0.5])], [objects(BOX, difficult=[1])], "voc") == {}
