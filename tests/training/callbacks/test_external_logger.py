"""What TensorBoard, MLflow and loggers of a user's own receive of runs that end and resume."""

import json
import signal
import sys
from collections import defaultdict

import numpy as np
import pytest
from conftest import TINY
from interruptible_run import InterruptibleRun
from pytorch_lightning import Callback

from src.runs import loggers
from src.runs.run_dir import RunDir
from src.training.callbacks.external_logger import without_prompts
from src.training.callbacks.preemption import Interrupted

RECORDING = "+logger.mine._target_=recording_logger.RecordingLogger"
OWN = (RECORDING, "+logger.mine.path=%run_dir%/%run_name%.jsonl")


def received(run_dir, kind="row"):
    path = run_dir.path / f"{run_dir.path.name}.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [value for line_kind, value in lines if line_kind == kind]


def rows_of(received_rows):
    """Return the received rows that are rows of metrics.csv."""
    return [row for row in received_rows if "train/loss" in row]


def tensorboard_rows(run_dir):
    """Read the event files back, in all of which a step may occur once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = defaultdict(dict)
    for file in sorted((run_dir.path / "tensorboard").glob("events.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                assert tag not in rows[event.step]
                rows[event.step][tag] = event.value
    return [{"iteration": step, **rows[step]} for step in sorted(rows)]


def mlflow_run(run_dir):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir.path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'deep-residual-learning'")
    (run,) = client.search_runs([experiment.experiment_id])
    rows = defaultdict(dict)
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            assert tag not in rows[metric.step]
            rows[metric.step][tag] = metric.value
    return run, [{"iteration": step, **rows[step]} for step in sorted(rows)]


def split_results(rows):
    """Return the rows without the results, and the results, which are at the last iteration."""
    results = {k: v for k, v in rows[-1].items() if k.startswith("summary/")}
    return [{k: v for k, v in row.items() if k not in results} for row in rows], results


def in_float32(rows):
    return [{key: np.float32(value) for key, value in row.items()} for row in rows]


def test_a_killed_and_resumed_run_is_one_series_in_tensorboard_and_mlflow(tiny, find, tmp_path):
    overrides = ["logger=[tensorboard,mlflow]"]
    run_dir = find(*TINY, "trainer.precision=32-true", *overrides)
    run = InterruptibleRun(run_dir, tmp_path / "log", ("writing rows", 7, 0))
    run.wait_for_stop()
    assert run.kill() == "writing rows"
    assert [row["iteration"] for row in run_dir.rows()] == [2, 3, 4, 6]
    assert len(tensorboard_rows(run_dir)) == len(mlflow_run(run_dir)[1]) == 3
    tiny(*overrides)

    rows, results = split_results(tensorboard_rows(run_dir))
    assert in_float32(rows) == in_float32(run_dir.rows())  # TensorBoard's precision
    assert results["summary/test_error"] == pytest.approx(run_dir.summary["test_error"])

    run, mlflow_rows = mlflow_run(run_dir)
    rows, results = split_results(mlflow_rows)
    assert rows == run_dir.rows()
    assert results["summary/test_error"] == run_dir.summary["test_error"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.runName"] == run_dir.path.name
    assert run.data.params["recipe.iterations"] == "8"


def test_a_logger_of_ones_own_receives_the_config_the_rows_and_the_end(tiny):
    run_dir = tiny(*OWN)
    assert received(run_dir, "config") == ["resnet"]
    assert rows_of(received(run_dir)) == run_dir.rows()
    assert received(run_dir)[-1]["summary/test_error"] == run_dir.summary["test_error"]
    assert received(run_dir, "status") == ["success"]


def test_a_row_is_sent_only_when_a_checkpoint_covers_it(tiny_until, find):
    overrides = (*OWN, "recipe.checkpoint_every=3", "recipe.eval_every=8")
    tiny_until(5, *overrides)  # with rows of iterations 2 and 4, and a checkpoint at 3
    run_dir = find(*TINY, "trainer.precision=32-true", *overrides)
    assert [row["iteration"] for row in run_dir.rows()] == [2, 4]
    assert [row["iteration"] for row in received(run_dir)] == [2]


def test_without_a_checkpoint_nothing_is_sent(tiny, tiny_until):
    rare = "checkpoint_seconds=1000"
    tiny_until(7, *OWN, rare)
    run_dir = tiny(*OWN, rare)
    assert rows_of(received(run_dir)) == run_dir.rows()  # none of them twice
    assert received(run_dir, "config") == ["resnet"]


def test_the_process_that_only_writes_the_summary_sends_the_results(tiny, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(RunDir, "write_summary", fail)
        with pytest.raises(OSError, match="no space left"):
            tiny(*OWN)
    run_dir = tiny(*OWN)
    rows = received(run_dir)
    assert rows_of(rows) == run_dir.rows()
    assert rows[-1]["summary/test_error"] == run_dir.summary["test_error"]
    assert received(run_dir, "status") == ["failed", "success"]


def test_a_logger_that_fails_is_reported_once_and_the_run_continues(tiny, capsys):
    run_dir = tiny(*OWN, "+logger.mine.fails_at=4")
    assert run_dir.summary
    assert [row["iteration"] for row in received(run_dir)] == [2, 3]
    assert received(run_dir, "status") == []
    reports = [line for line in capsys.readouterr().out.splitlines() if "logger.mine" in line]
    assert reports == [f"logger.mine failed (the server is gone); {run_dir.metrics} has everything"]


def test_a_logger_that_asks_a_question_is_an_error_of_the_logger(tiny, capsys):
    terminal = sys.stdin
    run_dir = tiny(*OWN, "+logger.mine.asks=true")
    assert run_dir.summary
    assert "logger.mine failed (EOF when reading a line); " in capsys.readouterr().out
    assert sys.stdin is terminal
    with without_prompts():
        assert not sys.stdin.isatty()


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ZeroDivisionError(), ["failed"]),
        (Interrupted(signal.SIGTERM, "saved"), []),  # it is to be resumed
        (KeyboardInterrupt(), []),
    ],
)
def test_a_logger_is_told_of_a_failure_but_not_of_an_interruption(tiny, find, error, ends):
    class Raises(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 5:
                raise error

    with pytest.raises((type(error), SystemExit)):
        tiny(*OWN, callbacks=[Raises()])
    run_dir = find(*TINY, "trainer.precision=32-true", *OWN)
    assert received(run_dir, "status") == ends
    assert [row["iteration"] for row in received(run_dir)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+logger.mine=3"], r"logger\.mine is not a logger: set \+logger\.mine\._target_=CLASS"),
        (["+logger.mine.path=x"], r"logger\.mine is not a logger"),
    ],
)
def test_what_is_no_logger_is_refused(find, overrides, message):
    with pytest.raises(ValueError, match=message):
        find(*overrides)


@pytest.mark.parametrize("name", loggers.PACKAGES)
def test_a_missing_package_is_named_with_its_install_command(find, monkeypatch, name):
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"logger={name} needs .* pip install {name}$"):
        find(f"logger={name}")
    assert find("logger=csv")
