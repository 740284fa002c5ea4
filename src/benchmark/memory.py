"""What `python -m src.benchmark` measures of memory, of depth and of what a step is made of."""

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor

import torch

from src.benchmark import baselines
from src.benchmark.baselines import DEVICE, bare, make_net, ours
from src.benchmark.runner import NATIVE, PRECISIONS, for_net, in_process, in_turns, rows
from src.report.results import Row


def _peak(net: str, precision: str, activation_checkpointing: bool) -> float:
    step = baselines.bare_step(net, precision, activation_checkpointing=activation_checkpointing)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def memory(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Peak memory of a training step at batch 128; on a CPU, what the process grows by."""
    tasks = {
        (net, "activation_checkpointing=true" if activation_checkpointing else "activation_checkpointing=false", p): (
            _peak,
            (net, p, activation_checkpointing),
        )
        for net in ("resnet110", "resnet1202")
        for p in PRECISIONS
        for activation_checkpointing in (False, True)
    }
    return rows("memory", in_turns(tasks, 1), "GiB")


def _per_multiply_add(net: str, count: int) -> float:
    from src.models.complexity import count_multiply_adds

    speed = bare(net, NATIVE, count)
    return 1e12 / (speed * count_multiply_adds(make_net(net), (3, 32, 32)))


def scale(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Picoseconds of a bare step per multiply-add and image: the same for each n if cost grows as they do."""
    depths = (20, 32, 44, 56, 110, 1202)
    tasks = {
        (f"resnet{d}", "bare step", NATIVE): (_per_multiply_add, (f"resnet{d}", for_net(iterations, f"resnet{d}")))
        for d in depths
    }
    return rows("scale", in_turns(tasks, repeats), "ps/multiply-add")


def together(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Images per second of several runs of src.train at once on one device, all of them together."""
    net, values = nets[0], {}
    for jobs in (1, 2, 4):
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        speeds = []
        for _ in range(repeats):
            os.environ["OMP_NUM_THREADS"] = threads
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes:
                task = (in_process, ours, (net, NATIVE, for_net(4 * iterations, net)))
                speeds.append(sum(future.result() for future in [processes.submit(*task) for _ in range(jobs)]))
            del os.environ["OMP_NUM_THREADS"]
        values[net, f"{jobs} at once", NATIVE] = speeds
    return rows("together", values, "images/s")


def _profile(net: str, precision: str, count: int) -> list[tuple[str, float]]:
    step = baselines.bare_step(net, precision)
    for _ in range(3):
        step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(count):
            step()
    profiler.export_chrome_trace(f"profile-{net}.json.gz")
    own = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    spent = [(event.key, getattr(event, own) / count / 1000) for event in profiler.key_averages()]
    return sorted(spent, key=lambda pair: -pair[1])


def profile(iterations: int, repeats: int, nets: list[str]) -> list[Row]:
    """Where the time of a bare step goes; profile-NET.json.gz opens in Perfetto (ui.perfetto.dev)."""
    found = []
    for net in nets:
        spent = in_turns({net: (_profile, (net, NATIVE, 5))}, 1)[net][0]
        values = {(net, name, NATIVE): [milliseconds] for name, milliseconds in spent[:10]}
        values[net, "all else", NATIVE] = [sum(milliseconds for _, milliseconds in spent[10:])]
        found += rows("profile", values, "ms/step")
    return found
