"""The files of a run, and that one process at a time writes them."""

import os
import signal
from multiprocessing import get_context

import pytest
import yaml

from src.runs.lock import LockedError
from src.runs.run_dir import RunDir

CONTEXT = get_context("forkserver")


@pytest.fixture
def run_dir(find):
    return find("n=1", "trainer.precision=32-true")


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
