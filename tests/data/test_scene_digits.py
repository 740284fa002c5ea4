"""Scenes of one digit, to classify and to localize."""

import pytest
import torch

from src.data.scene_digits import SceneDigits
from src.data.scenes import Scenes


@pytest.fixture(scope="module")
def digits():
    data = SceneDigits(
        30, 12, 64, seed=3, val_images=0, normalization="channel", padding=4, flip=False
    )
    data.setup()
    return data


def test_the_images_are_the_scenes_of_a_localizer(digits):
    classes = [*map(str, range(10))]
    common = {
        "tasks": [],
        "min_size": 64,
        "max_size": 64,
        "flip": False,
        "val_images": 0,
        "seed": 0,
    }
    scenes = Scenes(30, 12, 64, max_objects=1, classes=classes, **common)
    for split, count in (("train", 30), ("test", 12)):
        images, labels = digits.splits[split]
        assert len(images) == len(labels) == count
        for i in range(count):
            image, target = scenes.read(split, i)
            assert len(target["labels"]) == 1
            own = i if split == "test" else find(images, image)
            assert torch.equal(images[own].movedim(-1, 0), image)
            assert labels[own] == target["labels"][0] - 1


def find(images, image):
    """Return the position of an image among the training images, which the seed shuffles."""
    (position,) = [i for i, other in enumerate(images) if torch.equal(other.movedim(-1, 0), image)]
    return position


def test_they_are_normalized_by_channel(digits):
    assert digits.mean.shape == digits.std.shape == (3,)
    assert digits.image_shape == (3, 64, 64)
