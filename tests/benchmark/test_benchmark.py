import os
import sys
from contextlib import nullcontext
from itertools import repeat
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from images_on_disk import make_folders
from torch.autograd import DeviceType

from src.benchmark import __main__ as benchmark
from src.benchmark import baselines, clock, detection, memory, pipelines, runner, throughput
from src.benchmark.clock import Clock
from src.benchmark.runner import make_rows, run_rounds, run_task, scaled_iterations
from src.tables import read_csv
from src.training.cuda_graph import CUDAGraphStep

GPU = torch.device("cuda")


def test_the_clock_times_only_the_iterations_after_the_warm_up(monkeypatch):
    now = iter(range(100, 1000, 7))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    timed = Clock(30)
    assert len([*timed.timed(repeat(None))]) == 40
    assert next(now) == 114  # the time was read twice
    assert timed.images_per_second == 30 * 128 / 7
    assert timed.microseconds == 7e6 / 30


def test_the_warm_up_is_shorter_for_few_iterations_but_captures_a_cuda_graph():
    assert [Clock(n).warm_up for n in (1, 7, 30)] == [CUDAGraphStep.EAGER_CALLS + 1, 7, 10]


def test_the_clock_waits_for_the_gpu_before_it_reads_the_time(monkeypatch):
    calls = []
    monkeypatch.setattr(clock, "DEVICE", GPU)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: calls.append("read") or len(calls))
    for _ in Clock(1).timed(repeat(None)):
        calls.append("iteration")
    assert calls == [*["iteration"] * 4, "wait", "read", "iteration", "wait", "read"]


def test_a_ratio_is_the_median_of_the_ratios_within_a_round():
    values = {
        ("net", "src.train", "p"): [10.0, 20.0, 90.0],
        ("net", "other", "p"): [5.0, 40.0, 30.0],
    }
    ours, other = make_rows("step", values, "images/s")
    assert (ours["value"], ours["src.train / this"], ours["repeats"]) == (20.0, 1.0, 3)
    assert (other["value"], other["src.train / this"]) == (30.0, 2.0)
    assert make_rows("memory", values, "GiB")[1]["src.train / this"] == ""


def test_a_speed_is_compared_with_src_train_at_its_own_precision_or_a_given_one():
    values = {
        ("net", "src.train", "bf16-mixed"): [30.0],
        ("net", "src.train", "32-true"): [20.0],
        ("net", "other", "32-true"): [10.0],
    }
    for precision, ratio in ((None, 2.0), ("bf16-mixed", 3.0)):
        rows = make_rows("step", values, "images/s", precision)
        assert rows[2]["src.train / this"] == ratio


@pytest.mark.slow
def test_each_task_runs_in_a_new_process_in_each_round():
    pids = run_rounds({"a": os.getpid}, 2)["a"]
    assert len({os.getpid(), *pids}) == 3


def test_fp32_is_not_tf32_where_a_task_runs(monkeypatch):
    monkeypatch.setattr(runner, "initialize_config_dir", lambda *_, **__: nullcontext())
    cudnn, matmul = (SimpleNamespace(allow_tf32=True) for _ in range(2))
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    assert run_task(lambda: (cudnn.allow_tf32, matmul.allow_tf32)) == (False, False)


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
        for measure, device in (("step", "this"), ("step", "other"), ("data", "this"))
    ]
    benchmark.save(path, old)
    monkeypatch.setattr(benchmark, "device_name", lambda device: "this")
    monkeypatch.setenv("GIT_COMMIT", "abc0123")
    rows = [{"measure": "step", "value": 2}]
    monkeypatch.setitem(benchmark.MEASURES, "step", lambda options: rows)
    monkeypatch.setattr(sys, "argv", ["benchmark", "step", "-o", str(path)])
    benchmark.main()
    stored = [(row["measure"], row["device"], row["value"]) for row in read_csv(path)]
    assert stored == [("step", "other", 1), ("data", "this", 1), ("step", "this", 2)]
    assert read_csv(path)[-1]["git_commit"] == "abc0123"
    assert capsys.readouterr().out == "measure=step  value=2\n"


def test_the_overhead_is_measured_in_a_plain_loop_and_in_a_run():
    assert throughput.tiny_loop(5) > 0
    assert throughput.tiny_run(5) > 0


def test_on_a_gpu_each_way_to_compile_is_measured(monkeypatch):
    cpu = throughput.step_tasks("resnet20", 60)
    monkeypatch.setattr(throughput, "DEVICE", GPU)
    gpu = throughput.step_tasks("resnet20", 60)
    added = {case[1]: task for case, task in gpu.items() if case not in cpu}
    modes = ["none", "inductor", "cudagraph", "inductor+cudagraph"]
    assert [*added] == [f"src.train compile={mode}" for mode in modes]
    assert [task.args[-1] for task in added.values()] == modes
    assert all(task.func is baselines.src_train_speed for task in added.values())


def test_training_batches_are_made_on_the_device_of_a_trainer(monkeypatch):
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    monkeypatch.setattr(pipelines, "Trainer", lambda **_: trainer)
    images, labels = next(pipelines.src_train_batches("data=digits"))
    assert images.shape == (128, 3, 8, 8)
    assert images.device.type == labels.device.type == "meta"


def test_imagenet_pipelines_read_a_directory_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "BATCH_SIZE", 2)
    root = make_folders(tmp_path, train=1, val=1)
    monkeypatch.setattr(pipelines, "IMAGENET_TRAIN", root / "train")
    ours, _ = next(pipelines.src_train_batches(*pipelines.IMAGENET, f"data.root={root}"))
    usual, _ = next(pipelines.imagenet_batches())
    assert ours.shape == usual.shape == (2, 3, 224, 224)
    assert len(next(pipelines.decoded_batches())) == 2
    assert pipelines.pipeline_speed(1, pipelines.decoded_batches) > 0


def test_the_memory_of_a_gpu_is_that_of_the_second_step(monkeypatch):
    """The first one has the workspaces of the kernels that cuDNN only tries."""
    calls = []
    monkeypatch.setattr(memory, "DEVICE", GPU)
    monkeypatch.setattr(memory, "make_bare_step", lambda *_: lambda: calls.append("step"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**29)
    assert memory.peak_gib("resnet110", "32-true", False) == 0.5
    assert calls == ["step", "reset", "step"]


def test_the_profile_of_a_gpu_counts_each_kernel_once(monkeypatch):
    def event(key, device_type, cpu_us, gpu_us, is_user_annotation=False):
        return SimpleNamespace(
            key=key,
            device_type=device_type,
            self_cpu_time_total=cpu_us,
            self_device_time_total=gpu_us,
            is_user_annotation=is_user_annotation,
        )

    events = [
        event("aten::convolution", DeviceType.CPU, 9, 70),
        event("Optimizer.step#SGD.step", DeviceType.CPU, 5, 0, True),
        event("convolution_kernel", DeviceType.CUDA, 0, 70),
        event("Optimizer.step#SGD.step", DeviceType.CUDA, 0, 40, True),
        event("sgd_kernel", DeviceType.CUDA, 0, 30),
    ]
    assert memory.self_times(events)[0] == ("aten::convolution", 9)
    monkeypatch.setattr(memory, "DEVICE", GPU)
    assert memory.self_times(events) == [("convolution_kernel", 70), ("sgd_kernel", 30)]


def test_a_profile_has_the_longest_operations_first_and_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BATCH_SIZE", 8)
    monkeypatch.chdir(tmp_path)
    spent = memory.profile("resnet20", "32-true")
    assert "aten::convolution_backward" in dict(spent)
    assert [ms for _, ms in spent] == sorted((ms for _, ms in spent), reverse=True)
    assert (tmp_path / "profile-resnet20.json.gz").exists()


@pytest.mark.parametrize(
    "speed",
    [
        baselines.bare_step_speed,
        pytest.param(baselines.plain_loop_speed, marks=pytest.mark.cifar10),
        pytest.param(baselines.lightning_module_speed, marks=pytest.mark.cifar10),
    ],
)
def test_a_baseline_trains(speed, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the marker looks for CIFAR-10
    for module in (baselines, pipelines):
        monkeypatch.setattr(module, "BATCH_SIZE", 8)
    assert speed("resnet20", "32-true", 1) > 0


@pytest.mark.slow
def test_a_detector_is_timed_in_src_train_in_evaluation_and_in_the_reference_loop(monkeypatch):
    monkeypatch.setattr(detection, "DETECTION", (*detection.DETECTION, "data.test_scenes=8"))
    assert detection.src_train_speed("32-true", 1) > 0
    assert detection.evaluation_speed("32-true") > 0
    assert detection.reference_speed(1) > 0
