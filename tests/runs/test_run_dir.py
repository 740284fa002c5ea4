"""The files of a run, and that one process at a time writes them."""

import os
import signal
from multiprocessing import get_context

import pytest
import yaml

from src.runs.lock import LockedError
from src.runs.run_dir import RunDir

COLUMNS = ["iteration", "lr", "train/loss", "test/error"]
CONTEXT = get_context("forkserver")


@pytest.fixture
def run_dir(find):
    return find("n=1", "trainer.precision=32-true")


def add_rows(run_dir, *iterations):
    for iteration in iterations:
        row = {"iteration": iteration, "lr": 0.1, "train/loss": 1.5}
        run_dir.append_metrics(COLUMNS, row)


def test_a_directory_is_locked_while_a_run_writes_to_it(run_dir):
    with run_dir.locked(), pytest.raises(LockedError, match="being written by process"):
        run_dir.locked().__enter__()
    with run_dir.locked():
        pass


def test_a_directory_takes_only_runs_with_its_run_key(run_dir, find):
    elsewhere = RunDir(
        run_dir.path, find("n=1", "trainer.devices=2", "trainer.precision=32-true").config
    )
    longer = RunDir(run_dir.path, find("n=1", "recipe.iterations=5").config)
    with run_dir.locked():
        pass
    text = (run_dir.path / "config.yaml").read_text()
    with elsewhere.locked():
        pass
    with pytest.raises(
        ValueError, match="recipe.iterations was 800, now 5.*move that directory away"
    ):
        longer.locked().__enter__()
    assert (run_dir.path / "config.yaml").read_text() == text


def hold_lock(run_dir, pipe):
    """Lock a run directory and start a worker, then wait to be killed."""
    with run_dir.locked():
        worker = os.fork()
        if not worker:
            signal.pause()
        pipe.send(worker)
        signal.pause()


@pytest.mark.fault_injection("fault", "two processes at one run directory")
def test_a_killed_process_releases_the_lock_even_if_a_worker_outlives_it(run_dir):
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold_lock, args=(run_dir, theirs))
    process.start()
    worker = ours.recv()
    owner = f"process {process.pid} on {os.uname().nodename}"
    with pytest.raises(LockedError, match=f"is being written by {owner}: wait for it, or stop it"):
        run_dir.locked().__enter__()
    process.kill()
    process.join()
    with run_dir.locked():
        os.kill(worker, signal.SIGKILL)  # it was alive until now


def test_an_error_of_a_run_is_recorded_until_the_next_attempt(run_dir):
    with pytest.raises(ZeroDivisionError), run_dir.locked():
        raise ZeroDivisionError
    assert run_dir.error.read_text() == "ZeroDivisionError"
    with run_dir.locked():
        assert not run_dir.error.exists()


def test_rows_are_appended_and_truncated_before_a_run_resumes(run_dir):
    run_dir.create()
    add_rows(run_dir, 100, 200, 300)
    for iteration in (200, 300):
        rows = [{"iteration": iteration, "layer": name} for name in ("conv1", "fc")]
        rows[0]["response"] = 0.5
        run_dir.append_layers(["iteration", "layer", "response"], rows)
    with open(run_dir.metrics, "a") as file:
        file.write("400,0.1")  # a kill can cut a row short
    assert run_dir.last_iteration == 400

    run_dir.truncate(200)
    assert (
        run_dir.metrics.read_text()
        == "iteration,lr,train/loss,test/error\n100,0.1,1.5,\n200,0.1,1.5,\n"
    )
    assert run_dir.layers.read_text() == "iteration,layer,response\n200,conv1,0.5\n200,fc,\n"
    assert run_dir.rows()[-1] == {"iteration": 200, "lr": 0.1, "train/loss": 1.5}
    assert run_dir.last_iteration == 200
    run_dir.truncate(0)
    assert not run_dir.metrics.exists()
    assert (run_dir.rows(), run_dir.last_iteration) == ([], 0)


@pytest.mark.parametrize(("logged", "wrong"), [([100], 200), ([100, 150, 200], 150), ([], 100)])
def test_rows_that_do_not_match_the_checkpoint_are_refused(run_dir, logged, wrong):
    run_dir.create()
    add_rows(run_dir, 100, 200)
    run_dir.check_rows([100, 200])
    with pytest.raises(ValueError, match=f"does not match its checkpoint .see iteration {wrong}."):
        run_dir.check_rows(logged)


def test_a_directory_or_file_that_was_removed_during_a_run_is_noticed(run_dir):
    with run_dir.locked():
        add_rows(run_dir, 100)
        run_dir.metrics.unlink()
        with pytest.raises(
            FileNotFoundError, match="metrics.csv was removed or moved during the run"
        ):
            add_rows(run_dir, 200)
        run_dir.path.rename(run_dir.path.with_name("moved"))
        with pytest.raises(FileNotFoundError, match=f"{run_dir.path} was removed or moved"):
            run_dir.write_summary({})
    assert not run_dir.path.exists()


def test_only_a_summary_and_the_protocol_of_the_config_make_a_run_finished(run_dir, find):
    run_dir.create()
    assert run_dir.summary is None
    assert not run_dir.finished
    run_dir.write_summary({"test_error": 8.75})
    assert run_dir.summary == {"test_error": 8.75}
    assert run_dir.finished

    with_10_crops = find("n=1", "trainer.precision=32-true", "protocol=10crop")
    assert with_10_crops.path == run_dir.path
    assert not with_10_crops.finished
    with_10_crops.write_evaluation({"protocol": "10crop", "test_error": 8.0})
    assert with_10_crops.finished
    assert run_dir.evaluation("10crop")["test_error"] == 8


def test_only_a_directory_with_a_config_and_a_checkpoint_is_opened_as_a_trained_run(run_dir):
    with pytest.raises(FileNotFoundError, match="is not a run directory: there is no config.yaml"):
        RunDir.open_trained(run_dir.path)
    run_dir.create()
    mistyped = run_dir.path.with_name(run_dir.path.name.replace("-s0", "-bf16-mixed-s0"))
    with pytest.raises(FileNotFoundError, match=rf"; did you mean {run_dir.path}\?$"):
        RunDir.open_trained(mistyped)
    with pytest.raises(FileNotFoundError, match="is not a run directory with a checkpoint"):
        RunDir.open_trained(run_dir.path)
    run_dir.last_checkpoint.parent.mkdir()
    run_dir.last_checkpoint.touch()
    opened = RunDir.open_trained(run_dir.path)
    assert (opened.config, opened.key) == (run_dir.config, run_dir.key)
    assert yaml.safe_load((run_dir.path / "config.yaml").read_text())["n"] == 1
