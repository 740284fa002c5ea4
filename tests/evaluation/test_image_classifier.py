"""The classes that a classifier gives a localizer."""

import pytest
import torch
from torch import nn

from src.data.transforms import center_crop
from src.evaluation.image_classifier import ImageClassifier, load_classifier


class Fixed(nn.Module):
    """Gives all images the same scores, and keeps the images."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = torch.tensor([scores])

    def forward(self, pixels):
        self.pixels = pixels
        return self.scores


def test_the_most_probable_classes_come_first_counted_from_one():
    classify = ImageClassifier(Fixed(0.1, 0.7, 0.2, 0.9, 0.3, 0.4), (3, 8, 8))
    image = torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8)
    assert classify(image) == [4, 2, 6, 5, 3]
    assert torch.equal(classify.net.pixels[0].movedim(-1, 0), image)


def test_of_fewer_than_five_classes_all_are_given():
    assert ImageClassifier(Fixed(0.1, 0.7), (3, 8, 8))(torch.zeros(3, 8, 8)) == [2, 1]


def test_a_net_of_imagenet_sees_the_central_crop():
    classify = ImageClassifier(Fixed(0.1, 0.7), (3, 224, 224))
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    classify(image)
    assert torch.equal(classify.net.pixels[0].movedim(-1, 0), center_crop(image))


def test_a_net_of_small_images_takes_no_others():
    with pytest.raises(ValueError, match=r"takes images of \[3, 8, 8\].* are of \[3, 9, 8\]"):
        ImageClassifier(Fixed(0.1, 0.7), (3, 8, 8))(torch.zeros(3, 9, 8))


def test_the_number_of_classes_must_be_that_of_the_localizer(tiny):
    run_dir = tiny("data=digits")
    assert load_classifier(run_dir, 10).image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="is of 10 classes, but the localizer of 3"):
        load_classifier(run_dir, 3)
