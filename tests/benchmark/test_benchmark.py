import os
import subprocess
import sys

import pytest
from conftest import ROOT

from src.benchmark import baselines, throughput
from src.benchmark.baselines import Clock
from src.benchmark.runner import in_turns, rows


def test_the_clock_times_the_iterations_after_the_warm_up(monkeypatch):
    now = iter(range(100, 1000, 7))
    monkeypatch.setattr(baselines.time, "perf_counter", lambda: next(now))
    clock = Clock(30)
    ticks = [clock.tick() for _ in range(clock.ticks)]
    assert ticks == [False] * 39 + [True]
    assert clock.seconds == 7
    assert clock.images_per_second == 30 * 128 / 7


def test_a_ratio_is_the_median_of_the_ratios_within_a_turn():
    values = {("net", "src.train", "p"): [10.0, 20.0, 90.0], ("net", "other", "p"): [5.0, 40.0, 30.0]}
    ours, other = rows("step", values, "images/s", lambda name: ("net", "src.train", "p"))
    assert (ours["value"], ours["src.train / this"], ours["repeats"]) == (20.0, 1.0, 3)
    assert (other["value"], other["src.train / this"]) == (30.0, 2.0)
    assert rows("step", values, "images/s")[1]["src.train / this"] == ""


def test_measurements_take_turns_in_processes_of_their_own():
    values = in_turns({"a": (os.getpid, ()), "b": (os.getpid, ())}, 2)
    assert len({*values["a"], *values["b"], os.getpid()}) == 5


def test_the_plain_loop_of_the_overhead_runs():
    assert throughput._plain_tiny(5) > 0


def test_an_unknown_measure_is_named():
    done = subprocess.run([sys.executable, "-m", "src.benchmark", "stpe"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no measure stpe; there are step, overhead" in done.stderr


@pytest.mark.cifar10
def test_each_loop_trains_and_tells_a_speed():
    for loop in (baselines.bare, baselines.conventional):
        assert loop("resnet20", "32-true", 1) > 0
