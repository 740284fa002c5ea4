"""A scene is a function of its index alone; its boxes and its mask are exact."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torchvision.ops import box_iou


@pytest.fixture
def scenes(find):
    config = find("data=scenes", "task=detection").config["data"]

    def make(seed=0, **changes):
        data = instantiate(config | changes, seed=seed)
        data.setup()
        return data

    return make


def test_a_scene_is_the_same_whenever_it_is_made_and_whatever_the_seed_of_the_run(scenes):
    first, again = scenes(seed=0).example("test", 3), scenes(seed=1).example("test", 3)
    assert torch.equal(first.image, again.image)
    assert all(torch.equal(first.target[key], again.target[key]) for key in first.target)


def test_scenes_differ_from_each_other_and_between_the_splits(scenes):
    data = scenes()
    images = [data.read(split, i).image for split in ("train", "test") for i in range(3)]
    assert not any(torch.equal(a, b) for a, b in combinations(images, 2))


def test_boxes_are_tight_around_the_mask_of_their_object(scenes):
    data, objects = scenes(), 0
    for index in range(50):
        target = data.read("train", index).target
        mask, covered = target["mask"].numpy(), 0
        assert 1 <= len(target["boxes"]) <= 5
        for box, label in zip(target["boxes"].long().tolist(), target["labels"], strict=True):
            x1, y1, x2, y2 = box
            rows, columns = np.nonzero(mask[y1:y2, x1:x2] == label.item())
            assert (rows.min(), rows.max() + 1) == (0, y2 - y1)
            assert (columns.min(), columns.max() + 1) == (0, x2 - x1)
            covered += len(rows)
            objects += 1
        assert covered == (mask > 0).sum()  # nothing else is in the mask
    assert objects > 100


def test_objects_do_not_overlap(scenes):
    data = scenes()
    for index in range(50):
        boxes = data.read("train", index).target["boxes"]
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() == 0


def test_no_digit_is_in_training_and_in_test_scenes(scenes):
    data = scenes()
    images, labels = data.digits
    # Mark the digits of the test scenes, instead of naming them.
    data.digits = images, np.where(np.arange(len(labels)) < 500, 7, 3)
    seen = {
        split: {int(label) for i in range(20) for label in data.read(split, i).target["labels"]}
        for split in ("train", "test")
    }
    assert seen == {"train": {4}, "test": {8}}


def test_the_fingerprint_changes_with_what_scenes_are_made_of(scenes):
    assert scenes().fingerprint == scenes(seed=1).fingerprint
    assert scenes().fingerprint != scenes(size=48).fingerprint


def test_images_are_normalized_with_the_statistics_of_training_scenes(scenes):
    data = scenes(train_scenes=5)
    pixels = np.concatenate(
        [data.read("train", i).image.numpy().reshape(3, -1) for i in range(5)], 1
    )
    np.testing.assert_allclose(data.mean, pixels.mean(1), rtol=1e-5)
    np.testing.assert_allclose(data.std, pixels.std(1, ddof=1), rtol=1e-5)
