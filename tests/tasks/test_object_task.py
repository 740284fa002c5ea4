"""What every task on images with objects tells its learning-rate schedule."""

from types import SimpleNamespace

import pytest
from small_tasks import DETECTION, LOCALIZATION, SEGMENTATION, make_module


@pytest.mark.parametrize(
    ("options", "metric", "errors"),
    [
        (DETECTION, "ap", [70, 100]),
        (SEGMENTATION, "iou", [70, 100]),
        (LOCALIZATION, "localization_error", [30, 100]),
    ],
)
def test_the_schedule_is_told_an_error_which_is_100_if_nothing_was_evaluated(
    find, options, metric, errors
):
    module, _ = make_module(find, *options)
    told = []
    module.schedule = SimpleNamespace(on_eval_error=told.append)
    module.on_evaluated({metric: 30.0})
    module.on_evaluated({})
    assert told == errors
