"""Runs that are told to stop, in this process; tests/cluster does it to several processes and on a real SLURM."""

import multiprocessing
import os
import signal
import subprocess

import pytest
import torch
from src.training.callbacks.record import Record
from test_train import assert_same_run

from src.data.loader import prefetch
from src.training import distributed
from src.training.callbacks.preemption import SIGNALS


@pytest.fixture
def told(tiny, monkeypatch, capsys):
    """Trains as `tiny` does and gets a signal before or after a hook of the record; gives the run's exit status."""

    def run(number, hook, iteration, when, *overrides):
        original = getattr(Record, hook)

        def tell(self, trainer, *args):
            if when == "after":
                original(self, trainer, *args)
            if trainer.global_step == iteration:
                os.kill(os.getpid(), number)
            if when == "before":
                original(self, trainer, *args)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(Record, hook, tell)
            tiny(*overrides)
        return stopped.value.code, capsys.readouterr().out.splitlines()[-1]

    return run


@pytest.mark.fault_injection(
    "stop", "told to stop by a signal: at any iteration, in an evaluation, in a checkpoint"
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("hook", "iterations"),
    [
        ("on_train_batch_end", [1, 2, 6]),
        ("on_validation_start", [3]),
        ("on_validation_end", [6]),
        ("_save", [2, 4]),
    ],
)
def test_a_run_told_to_stop_saves_after_the_next_iteration_and_goes_on_to_the_same_bits(
    tiny, find, told, tmp_path, hook, iterations, when, record_property
):
    """Each of the signals, in turn; a warm-up gives the run a state, and the next iteration may be to be evaluated."""
    record_property("tried", len(iterations))
    overrides = ("recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=89.0", "seed=3")
    whole = tiny(*overrides, f"output_dir={tmp_path}/whole")
    for iteration in iterations:
        runs, number = f"output_dir={tmp_path}/{iteration}", SIGNALS[iteration % 3]
        code, line = told(number, hook, iteration, when, *overrides, runs)
        assert code == 128 + number
        saved = f"stopped by {number.name}: saved at iteration {iteration + 1}; the same command goes on"
        assert line.endswith(saved)
        (folder,) = (tmp_path / str(iteration) / "digits").iterdir()
        assert not (folder / "error.txt").exists()
        assert (
            torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
            == iteration + 1
        )
        assert_same_run(tiny(*overrides, runs), whole)


def test_a_run_told_to_stop_in_its_last_evaluation_finishes(tiny, monkeypatch):
    original = Record.on_validation_start

    def tell(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Record, "on_validation_start", tell)
    assert tiny().summary["iterations"] == 8
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_told_to_stop_while_its_final_weights_are_tested_stops_at_once(
    tiny, find, monkeypatch, capsys
):
    from src.tasks.classification import Classifier

    original = Classifier.test_step

    def tell(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="143"):
        patch.setattr(Classifier, "test_step", tell)
        tiny("data.val_images=100")
    assert (
        "stopped by SIGTERM: saved at iteration 8; the same command goes on"
        in capsys.readouterr().out
    )
    folder = tiny("data.val_images=100")
    assert (
        folder.summary["test_error"]
        == tiny("data.val_images=100", f"output_dir={folder.path}/whole").summary["test_error"]
    )


def test_workers_that_make_batches_leave_the_signals_to_the_run_and_end_when_it_says_so():
    batches = prefetch(torch.tensor, range(40), 1)
    assert next(batches) == 0
    (worker,) = multiprocessing.active_children()
    subprocess.run(
        ["kill", "-TERM", str(worker.pid)], check=True
    )  # by another process, as SLURM does
    assert [int(batch) for batch in batches] == [*range(1, 40)]

    batches = prefetch(torch.tensor, range(40), 1)
    assert next(batches) == 0
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "1"},
            "torchrun has 2 processes on 1 nodes for this run",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "2"},
            "say trainer.devices=1 trainer.num_nodes=2",
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "2"},
            "SLURM has .*: say trainer.devices=2",
        ),
        ({"SLURM_STEP_ID": "0"}, "say --nodes and --ntasks-per-node"),
        ({}, "start them with srun python -m src.train"),
    ],
)
def test_processes_that_the_config_does_not_know_are_refused(
    tiny, find, monkeypatch, launched, said
):
    """Each would train the whole of the run by itself, all in one folder."""
    of_torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    of_slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
    }
    for name, value in (
        launched | (of_torchrun if "TORCHELASTIC_RUN_ID" in launched else of_slurm)
    ).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        tiny()
    assert not find().path.parent.exists()


def test_a_job_that_is_running_is_requeued_and_no_other(monkeypatch):
    asked = []

    def answer(*command):
        asked.append(" ".join(command))
        return states.pop() if command[0] == "squeue" else ""

    monkeypatch.setattr(distributed, "_answer", answer)
    assert (distributed.requeue(), asked) == ("the same command goes on", [])
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    states = ["RUNNING", "COMPLETING"]
    assert (
        distributed.requeue()
        == "not requeued here (the job is completing); the same command goes on"
    )
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")  # one of the jobs of a sweep
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert distributed.requeue() == "requeued"
    assert [command.split()[-1] for command in asked] == ["12", "11_1", "11_1"]
