"""The localization error, worked by hand."""

import pytest
import torch

from src.tasks.localization_error import Located, class_errors, is_found, localization_errors

TRUTH = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])


def located(label, box, classes=(), boxes=()):
    return Located(0, label, TRUTH, [*classes], torch.tensor([box, *boxes], dtype=torch.float32))


HIT, SECOND, MISS = [0, 0, 10, 9], [50, 50, 60, 61], [20, 20, 30, 30]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 10, 10], True),
        ([0, 0, 10, 5], True),  # IoU 0.5
        ([0, 0, 10, 4.9], False),
        ([0, 0, 10, 20], True),  # 0.5
        ([0, 0, 10, 20.1], False),
        ([50, 50, 60, 61], True),  # the second object
        ([0, 0, 60, 60], False),  # around both
    ],
)
def test_a_box_must_overlap_any_object_by_half_of_their_union(box, expected):
    assert is_found(torch.tensor(box, dtype=torch.float32), TRUTH) == expected


def test_with_the_class_given_only_the_box_counts():
    results = [located(1, HIT), located(2, MISS), located(2, SECOND), located(2, HIT)]
    assert localization_errors(results) == {"localization_error": 25.0}
    assert class_errors(results) == {1: 0.0, 2: pytest.approx(100 / 3)}


def test_of_the_top_five_one_must_have_both_the_class_and_the_box():
    first = located(3, HIT, [3, 1, 2, 4, 5], [HIT, MISS, MISS, MISS, MISS])
    fifth = located(3, HIT, [1, 2, 4, 5, 3], [MISS, MISS, MISS, MISS, HIT])
    wrong_box = located(3, MISS, [3, 1, 2, 4, 5], [MISS, HIT, HIT, HIT, HIT])
    wrong_class = located(3, HIT, [1, 2, 4, 5, 6], [HIT] * 5)
    errors = localization_errors([first, fifth, wrong_box, wrong_class])
    assert errors == {
        "localization_error": 25.0,  # wrong_box
        "localization_error_top1": 75.0,  # all but the first
        "localization_error_top5": 50.0,
        "classification_error_top5": 25.0,  # wrong_class
    }


def test_fewer_than_five_classes_are_all_predicted():
    result = located(2, HIT, [1, 2], [MISS, HIT])
    assert localization_errors([result])["localization_error_top5"] == 0


def test_without_images_there_are_no_errors():
    assert localization_errors([]) == {}
