"""What a training step needs: its peak memory, and the operations that its time goes to."""

import resource
from argparse import Namespace
from collections.abc import Iterable
from functools import partial
from itertools import product

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity

from src.benchmark.baselines import NATIVE, PRECISIONS, make_bare_step
from src.benchmark.clock import DEVICE
from src.benchmark.runner import Case, Task, make_rows, run_rounds
from src.tables import Row

# Those deep enough for activation checkpointing to matter.
MEMORY_NETS = ("resnet110", "resnet1202")
PROFILED_STEPS = 5
OPERATIONS = 10  # that get a row of their own


def measure_memory(options: Namespace) -> list[Row]:
    """Measure the peak memory of a step at batch 128; on a CPU, the growth of the process."""
    tasks: dict[Case, Task] = {}
    for net, precision, checkpointing in product(MEMORY_NETS, PRECISIONS, (False, True)):
        subject = f"activation_checkpointing={str(checkpointing).lower()}"
        tasks[net, subject, precision] = partial(peak_gib, net, precision, checkpointing)
    # Once is enough: the peak does not depend on what else the machine is doing.
    return make_rows("memory", run_rounds(tasks, 1), "GiB")


def peak_gib(net: str, precision: str, activation_checkpointing: bool) -> float:
    """Return the peak memory of a step in GiB."""
    step = make_bare_step(net, precision, activation_checkpointing)
    if DEVICE.type == "cuda":
        step()  # in which cuDNN tries kernels, some with far more workspace than the chosen ones
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**30
    before = _peak_rss_kib()
    step()
    return (_peak_rss_kib() - before) / 2**20


def _peak_rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def measure_profile(options: Namespace) -> list[Row]:
    """Profile a step; the trace, profile-NET.json.gz, opens in Perfetto (ui.perfetto.dev)."""
    rows = []
    for net in options.nets:
        spent = run_rounds({net: partial(profile, net, NATIVE)}, 1)[net][0]
        first, others = spent[:OPERATIONS], spent[OPERATIONS:]
        values = {(net, operation, NATIVE): [ms] for operation, ms in first}
        values[net, "all else", NATIVE] = [sum(ms for _, ms in others)]
        rows += make_rows("profile", values, "ms/step")
    return rows


def profile(net: str, precision: str) -> list[tuple[str, float]]:
    """Return the operations with their milliseconds per step, the longest first."""
    step = make_bare_step(net, precision)
    for _ in range(3):  # the first steps choose kernels and allocate memory
        step()

    activities = [ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    profiler.export_chrome_trace(f"profile-{net}.json.gz")
    spent = [(name, us / PROFILED_STEPS / 1000) for name, us in self_times(profiler.key_averages())]
    return sorted(spent, key=lambda pair: -pair[1])


def self_times(events: Iterable[FunctionEventAvg]) -> list[tuple[str, float]]:
    """Return the microseconds of each event without those it calls, so that they add up.

    On a GPU the events are kernels and copies. The operators that launch these have their time as
    device time, too, and an annotation, such as that of `Optimizer.step`, has all the time between
    its first kernel and its last.
    """
    if DEVICE.type == "cuda":
        return [
            (str(event.key), event.self_device_time_total)
            for event in events
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        ]
    return [(str(event.key), event.self_cpu_time_total) for event in events]
