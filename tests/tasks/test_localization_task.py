"""The evaluation of localization: which images count, and which box belongs to which class."""

import torch
from small_tasks import LOCALIZATION, make_module

from src.data.examples import make_target


def test_images_without_an_object_do_not_count_and_each_class_has_its_own_box(find):
    module, _ = make_module(find, *LOCALIZATION)
    module.localize_classes_of(lambda image: [4, 2])
    boxes = {2: [0.0, 0, 10, 10], 3: [0.0, 0, 10, 10], 4: [20.0, 20, 30, 30]}
    module.locate = lambda image, labels: torch.tensor([boxes[label] for label in labels])
    targets = [
        make_target(7, [], []),
        make_target(8, [[0, 0, 10, 10]], [2]),
        make_target(9, [[0, 0, 10, 10]], [3]),
    ]
    module.validation_step(([None] * 3, targets), 0)
    assert module.pop_eval_metrics() == {
        "localization_error": 0,
        "localization_error_top1": 100,
        "localization_error_top5": 50,
        "classification_error_top5": 50,
    }
    assert [result.image_id for result in module.results] == [8, 9]
