"""The rows of metrics.csv."""

import pytest

from src.tasks.classification import Classifier
from src.training.callbacks.metrics import metric_columns

COLUMNS = [
    *("iteration", "lr", "train/loss", "train/error", "train/error_top5"),
    *("val/loss", "val/error", "val/error_top5", "test/loss", "test/error", "test/error_top5"),
]


def test_each_stage_has_a_column_for_each_metric_of_the_task():
    assert metric_columns(Classifier) == COLUMNS


@pytest.fixture
def run_dir(tiny):
    return tiny()


def test_rows_are_written_at_logged_iterations_and_have_errors_at_evaluations(run_dir):
    header, *lines = run_dir.metrics.read_text().splitlines()
    assert header.split(",") == COLUMNS
    assert all(line.count(",") == len(COLUMNS) - 1 for line in lines)

    # Every second iteration is logged, every third and the last are evaluated.
    rows = {int(row["iteration"]): row for row in run_dir.rows()}
    assert [*rows] == [2, 3, 4, 6, 8]
    at_evaluations = {name for name in COLUMNS if not name.startswith("val/")}
    for iteration, row in rows.items():
        logged = {"iteration", "lr", "train/loss"}
        assert row.keys() == (at_evaluations if iteration in (3, 6, 8) else logged)


def test_training_errors_are_those_since_the_evaluation_before(run_dir):
    rows = {row["iteration"]: row for row in run_dir.rows()}
    for iteration, images in {3: 3 * 128, 6: 3 * 128, 8: 2 * 128}.items():
        errors = rows[iteration]["train/error"] * images / 100
        assert errors == pytest.approx(round(errors), abs=1e-9)


def test_held_out_images_are_evaluated_during_training_and_test_images_only_at_the_end(tiny):
    run_dir = tiny("data.val_images=100")
    rows = run_dir.rows()
    assert not [name for row in rows for name in row if name.startswith("test/")]
    assert run_dir.summary["val_error"] == rows[-1]["val/error"]
    assert run_dir.summary["val_images"] == 100
    errors = run_dir.summary["test_error"] * 5  # of 500 images
    assert errors == pytest.approx(round(errors), abs=1e-9)


def test_without_held_out_images_the_summary_has_the_errors_of_the_last_row(run_dir):
    last = run_dir.rows()[-1]
    errors = {"train_error": last["train/error"], "val_error": None}
    errors |= {"test_error": last["test/error"], "test_error_top5": last["test/error_top5"]}
    assert {name: run_dir.summary[name] for name in errors} == errors


@pytest.mark.fault_injection("fault", "a row of metrics.csv removed before a run is resumed")
def test_a_run_whose_rows_do_not_match_its_checkpoint_is_not_resumed(tiny, tiny_until, tmp_path):
    tiny_until(5)
    (path,) = tmp_path.rglob("metrics.csv")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(
        ValueError, match="does not match its checkpoint .see iteration 2.: restore"
    ):
        tiny()
