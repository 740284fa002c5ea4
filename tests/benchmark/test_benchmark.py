import os
import sys

import pytest
from images_on_disk import make_folders

from src.benchmark import __main__ as benchmark
from src.benchmark import baselines, throughput
from src.benchmark.baselines import Clock
from src.benchmark.runner import make_rows, run_rounds, scaled_iterations
from src.tables import read_csv


def test_the_clock_times_only_the_iterations_after_the_warm_up(monkeypatch):
    now = iter(range(100, 1000, 7))
    monkeypatch.setattr(baselines.time, "perf_counter", lambda: next(now))
    clock = Clock(30)
    ticks = [clock.tick() for _ in range(clock.total)]
    assert ticks == [False] * 39 + [True]
    assert clock.seconds == 7
    assert clock.images_per_second == 30 * 128 / 7


def test_a_ratio_is_the_median_of_the_ratios_within_a_round():
    values = {
        ("net", "src.train", "p"): [10.0, 20.0, 90.0],
        ("net", "other", "p"): [5.0, 40.0, 30.0],
    }
    ours, other = make_rows("step", values, "images/s", lambda case: ("net", "src.train", "p"))
    assert (ours["value"], ours["src.train / this"], ours["repeats"]) == (20.0, 1.0, 3)
    assert (other["value"], other["src.train / this"]) == (30.0, 2.0)
    assert make_rows("step", values, "images/s")[1]["src.train / this"] == ""


def test_each_task_runs_in_a_process_of_its_own_in_each_round():
    values = run_rounds({"a": (os.getpid, ()), "b": (os.getpid, ())}, 2)
    assert [len(pids) for pids in values.values()] == [2, 2]
    assert len({*values["a"], *values["b"], os.getpid()}) == 5


def test_deeper_nets_are_timed_over_fewer_iterations():
    assert [scaled_iterations(60, f"resnet{depth}") for depth in (20, 110, 1202)] == [60, 11, 4]


def test_an_unknown_measure_is_refused_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "stpe"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    message = capsys.readouterr().err
    assert "invalid choice: 'stpe'" in message
    assert all(name in message for name in ("step", "overhead", "profile"))


def test_new_rows_replace_those_of_the_same_measure_and_device(monkeypatch, tmp_path, capsys):
    path = tmp_path / "results.csv"
    old = [
        {"measure": measure, "value": 1, "device": device}
        for measure, device in (("step", "this"), ("step", "other"), ("eval", "this"))
    ]
    benchmark.save(path, old)
    monkeypatch.setattr(benchmark, "device_name", lambda device: "this")
    rows = [{"measure": "step", "value": 2}]
    monkeypatch.setitem(benchmark.MEASURES, "step", lambda settings: rows)
    monkeypatch.setattr(sys, "argv", ["benchmark", "step", "-o", str(path)])
    benchmark.main()
    stored = [(row["measure"], row["device"], row["value"]) for row in read_csv(path)]
    assert stored == [("step", "other", 1), ("eval", "this", 1), ("step", "this", 2)]
    assert read_csv(path)[-1]["git_commit"]
    assert capsys.readouterr().out == "measure=step  value=2\n"


def test_the_overhead_is_measured_in_a_plain_loop_and_in_a_run():
    assert throughput.tiny_loop(5) > 0
    assert throughput.tiny_run(5) > 0


@pytest.mark.parametrize("crop", ["scale", "area"])
def test_imagenet_pipelines_read_a_directory_of_images(crop, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "IMAGENET_BATCH", 2)
    monkeypatch.setattr(throughput, "IMAGENET_EPOCHS", 1)
    directory = make_folders(tmp_path, train=1, val=0) / "train"
    assert throughput.imagenet_pipeline_speed(directory, crop) > 0
    assert throughput.pil_speed(directory, crop) > 0
    assert throughput.decoding_speed(directory) > 0


@pytest.mark.cifar10
@pytest.mark.parametrize("speed", [baselines.bare_step_speed, baselines.plain_loop_speed])
def test_a_baseline_trains_on_cifar10(speed, monkeypatch):
    monkeypatch.setattr(baselines, "BATCH_SIZE", 8)
    assert speed("resnet20", "32-true", 1) > 0
