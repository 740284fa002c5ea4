"""Seconds of training and of evaluation, on a clock that the test sets."""

import time

import pytest

from src.training.callbacks.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test moves it."""

    class Clock:
        seconds = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.seconds)
    return Clock


@pytest.fixture
def stopwatch(clock):
    stopwatch = Stopwatch()
    clock.seconds += 50  # the data are read, which counts as neither
    stopwatch.on_train_start()
    return stopwatch


def test_evaluations_do_not_count_as_training(stopwatch, clock):
    clock.seconds += 10
    stopwatch.on_validation_start()
    clock.seconds += 3
    stopwatch.on_validation_end()
    clock.seconds += 20
    assert stopwatch.state_dict() == {"train_seconds": 30, "eval_seconds": 3}


def test_a_block_within_training_can_count_as_evaluation(stopwatch, clock):
    clock.seconds += 10
    with stopwatch.evaluating():
        clock.seconds += 4
    clock.seconds += 1
    assert stopwatch.state_dict() == {"train_seconds": 11, "eval_seconds": 4}


def test_a_resumed_run_continues_from_the_times_of_its_checkpoint(stopwatch, clock):
    clock.seconds += 10
    state = stopwatch.state_dict()
    resumed = Stopwatch()
    resumed.load_state_dict(state | {"eval_seconds": 5})
    clock.seconds += 1000
    resumed.on_train_start()
    clock.seconds += 1
    assert resumed.state_dict() == {"train_seconds": 11, "eval_seconds": 5}
