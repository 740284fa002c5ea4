"""Tasks on images with objects: the errors that a schedule receives, and how a run is finished."""

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
def test_the_schedule_receives_an_error_which_is_100_if_nothing_was_evaluated(
    find, options, metric, errors
):
    module, _ = make_module(find, *options)
    received = []
    module.schedule = SimpleNamespace(on_eval_error=received.append)
    module.on_evaluated({metric: 30.0})
    module.on_evaluated({})
    assert received == errors


@pytest.mark.parametrize("options", [DETECTION, SEGMENTATION, LOCALIZATION])
def test_a_run_that_could_not_write_its_picture_is_finished_by_the_same_command(
    tiny, monkeypatch, options
):
    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as full_disk:
        full_disk.setattr("src.tasks.pictures.atomic_write", fail)
        with pytest.raises(OSError, match="no space left"):
            tiny(*options)
    run_dir = tiny(*options)
    assert (run_dir.path / "examples.png").exists()
    last = run_dir.rows()[-1]
    metrics = {key.replace("/", "_"): x for key, x in last.items() if key.startswith("test/")}
    assert metrics.items() <= run_dir.summary.items()
    (per_class,) = [v for k, v in run_dir.summary.items() if k.endswith("_per_class")]
    assert per_class
