"""Runs that receive a signal; tests/cluster does it on a real SLURM too."""

import multiprocessing
import os
import signal
import subprocess

import pytest
import torch
from conftest import TINY
from interruptible_run import start_ranks
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import LambdaCallback
from run_comparison import assert_same_run, load_checkpoint
from test_kills import assert_identical_except_times

from src import train
from src.data.image_subset import LoadedBatch
from src.data.loader import Workers, read_batches
from src.training import distributed
from src.training.callbacks.preemption import SIGNALS


def send_signal(number: int, hook: str, iteration: int) -> Callback:
    """Return a callback that sends this process a signal in a hook, after so many iterations."""

    def send(trainer: Trainer, *_: object) -> None:
        if trainer.global_step == iteration:
            os.kill(os.getpid(), number)

    return LambdaCallback(**{hook: send})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a function that trains once and returns the run directory for all its calls."""
    runs = {}

    def run(find, *overrides):
        if overrides not in runs:
            run_dir = find(*overrides, f"output_dir={tmp_path_factory.mktemp('undisturbed')}")
            train.run(run_dir)
            runs[overrides] = run_dir
        return runs[overrides]

    return run


@pytest.mark.fault_injection(
    "stop", "a signal in an iteration, in an evaluation, in a checkpoint, or between them"
)
@pytest.mark.parametrize(
    ("hook", "iterations"),
    [
        ("on_train_batch_start", [0, 2, 4]),
        ("on_after_backward", [1, 5]),
        ("on_train_batch_end", [1, 2, 6]),
        ("on_validation_start", [3]),
        ("on_validation_end", [6]),
        ("on_save_checkpoint", [2, 3, 4]),
    ],
)
def test_a_run_that_receives_a_signal_saves_at_the_next_iteration_and_resumes_bit_exactly(
    find, undisturbed, tmp_path, capsys, hook, iterations, record_property
):
    """Each signal in turn; a warm-up gives the learning-rate schedule a state."""
    record_property("tried", len(iterations))
    overrides = [
        *TINY,
        "trainer.precision=32-true",
        "recipe.schedule.warmup_from_n=1",
        "recipe.schedule.warmup_error=89.0",
        "seed=3",
    ]
    expected = undisturbed(find, *overrides)
    for iteration in iterations:
        number = SIGNALS[iteration % len(SIGNALS)]
        run_dir = find(*overrides, f"output_dir={tmp_path}/{iteration}")
        with pytest.raises(SystemExit) as interrupted:
            train.run(run_dir, [send_signal(number, hook, iteration)])
        assert interrupted.value.code == 128 + number
        assert capsys.readouterr().out.splitlines()[-1] == (
            f"{run_dir.path} interrupted by {number.name}: saved at iteration {iteration + 1}; "
            "the same command resumes"
        )
        assert not run_dir.error.exists()
        assert load_checkpoint(run_dir)["global_step"] == iteration + 1
        train.run(run_dir)
        assert_same_run(run_dir, expected)


def test_a_run_that_receives_a_signal_in_its_last_evaluation_finishes(find):
    run_dir = find(*TINY, "trainer.precision=32-true")
    train.run(run_dir, [send_signal(signal.SIGTERM, "on_validation_start", 8)])
    assert run_dir.summary["iterations"] == 8
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_while_the_final_weights_are_evaluated_ends_the_run_at_once(
    find, undisturbed, capsys
):
    overrides = [*TINY, "data.val_images=100"]
    run_dir = find(*overrides)
    with pytest.raises(SystemExit, match="143"):
        train.run(run_dir, [send_signal(signal.SIGTERM, "on_test_batch_start", 8)])
    output = capsys.readouterr().out
    assert "interrupted by SIGTERM: saved at iteration 8; the same command resumes" in output
    assert run_dir.summary is None
    train.run(run_dir)
    expected = undisturbed(find, *overrides).summary["test_error"]
    assert run_dir.summary["test_error"] == expected


@pytest.mark.slow
@pytest.mark.fault_injection("stop", "a signal to one of two ranks")
@pytest.mark.parametrize("interrupted_rank", [0, 1])
def test_a_signal_to_one_rank_ends_all_at_the_same_iteration(find, tmp_path, interrupted_rank):
    """Rank 0 has the exit status of the signal; rank 1 has 0, or a launcher would kill rank 0."""
    overrides = [
        *TINY,
        "trainer.precision=32-true",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
    ]
    undisturbed = find(*overrides, f"output_dir={tmp_path}/undisturbed")
    run_dir, log = find(*overrides), tmp_path / "log"
    assert [rank.wait() for rank in start_ranks(undisturbed, log, None, None)] == [0, 0]

    stops = [None, None]
    stops[interrupted_rank] = ("training", 3, 0)
    ranks = start_ranks(run_dir, log, *stops)
    ranks[interrupted_rank].wait_for_stop()
    ranks[interrupted_rank].signal(signal.SIGTERM)
    ranks[interrupted_rank].resume()
    assert [rank.wait() for rank in ranks] == [143, 0], log.read_text()
    iteration = load_checkpoint(run_dir)["global_step"]
    assert iteration in (4, 5)
    assert f"interrupted by SIGTERM: saved at iteration {iteration};" in log.read_text()

    assert [rank.wait() for rank in start_ranks(run_dir, log, None, None)] == [0, 0]
    assert f"resumes at iteration {iteration} of 8" in log.read_text()
    assert_identical_except_times(undisturbed, run_dir)


def number_batch(number):
    return LoadedBatch((torch.tensor(number),), [])


def test_data_workers_ignore_signals_from_outside_and_end_when_the_run_terminates_them():
    batches = read_batches(number_batch, range(40), Workers(1, pin=False, reported=set()))
    assert next(batches) == (0,)
    (worker,) = multiprocessing.active_children()
    # From another process, as SLURM sends it.
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert [int(number) for (number,) in batches] == [*range(1, 40)]

    batches = read_batches(number_batch, range(40), Workers(1, pin=False, reported=set()))
    assert next(batches) == (0,)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(120)
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "1"},
            "torchrun started 2 processes on 1 nodes, the config asks for 1 on each of 1: "
            "set trainer.devices=2 trainer.num_nodes=1",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "2"},
            "torchrun started 2 .* set trainer.devices=1 trainer.num_nodes=2",
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "2"},
            "SLURM started 2 .* set trainer.devices=2",
        ),
        ({"SLURM_STEP_ID": "0"}, "pass --nodes and --ntasks-per-node"),
        ({}, "start them with srun python -m src.train"),
    ],
)
def test_processes_that_the_config_does_not_ask_for_are_an_error(
    tiny, find, monkeypatch, environment, message
):
    """Each would train the complete run by itself, all in one directory."""
    if "TORCHELASTIC_RUN_ID" in environment:
        environment = environment | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    else:
        environment = environment | {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NNODES": "1"}
        environment |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        tiny()
    assert not find().path.parent.exists()


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """Put squeue and scontrol on the PATH; return the files of their calls and of the state."""
    calls, state = tmp_path / "calls", tmp_path / "state"
    for command, answer in (("squeue", f"cat {state}"), ("scontrol", "true")):
        script = tmp_path / command
        script.write_text(f'#!/bin/sh\necho {command} "$@" >> {calls}\n{answer}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return calls, state


def test_only_a_running_slurm_job_is_requeued(slurm_commands, monkeypatch):
    calls, state = slurm_commands
    assert distributed.requeue() == "the same command resumes"
    assert not calls.exists()

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    state.write_text("COMPLETING\n")
    assert distributed.requeue() == (
        "not requeued (the job is completing); the same command resumes"
    )
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")  # one job of a sweep
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    state.write_text("RUNNING\n")
    assert distributed.requeue() == "requeued"
    assert calls.read_text().splitlines() == [
        "squeue --noheader --format=%T --jobs 12",
        "squeue --noheader --format=%T --jobs 11_1",
        "scontrol requeue 11_1",
    ]


def test_a_job_whose_slurm_has_no_commands_here_is_not_requeued(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert distributed.ask_slurm("squeue") == "[Errno 2] No such file or directory: 'squeue'"
    assert distributed.requeue().startswith("not requeued (the job is [errno 2] no such file")
