"""What a training step needs: its peak memory, and the operations that its time goes to."""

import resource

import torch
from torch.profiler import ProfilerActivity

from src.benchmark.baselines import DEVICE, NATIVE, PRECISIONS, make_bare_step
from src.benchmark.runner import Settings, Task, make_rows, run_rounds
from src.tables import Row

# Those deep enough for activation checkpointing to matter.
MEMORY_NETS = ("resnet110", "resnet1202")
PROFILED_STEPS = 5
OPERATIONS = 10  # that get a row of their own


def measure_memory(settings: Settings) -> list[Row]:
    """Measure the peak memory of a step at batch 128; on a CPU, the growth of the process."""
    tasks: dict[tuple[str, str, str], Task] = {}
    for net in MEMORY_NETS:
        for precision in PRECISIONS:
            for checkpointing in (False, True):
                subject = f"activation_checkpointing={str(checkpointing).lower()}"
                tasks[net, subject, precision] = _peak_gib, (net, precision, checkpointing)
    # Once is enough: the peak does not depend on what else the machine is doing.
    return make_rows("memory", run_rounds(tasks, 1), "GiB")


def _peak_gib(net: str, precision: str, activation_checkpointing: bool) -> float:
    step = make_bare_step(net, precision, activation_checkpointing=activation_checkpointing)
    before = _peak_rss_kib()
    step()
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return (_peak_rss_kib() - before) / 2**20


def _peak_rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def measure_profile(settings: Settings) -> list[Row]:
    """Profile a step; the trace, profile-NET.json.gz, opens in Perfetto (ui.perfetto.dev)."""
    rows = []
    for net in settings.nets:
        spent = run_rounds({net: (_profile, (net, NATIVE))}, 1)[net][0]
        first, others = spent[:OPERATIONS], spent[OPERATIONS:]
        values = {(net, operation, NATIVE): [ms] for operation, ms in first}
        values[net, "all else", NATIVE] = [sum(ms for _, ms in others)]
        rows += make_rows("profile", values, "ms/step")
    return rows


def _profile(net: str, precision: str) -> list[tuple[str, float]]:
    """Return the operations with their milliseconds per step, the longest first."""
    step = make_bare_step(net, precision)
    for _ in range(3):  # the first steps choose kernels and allocate memory
        step()

    on_gpu = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    profiler.export_chrome_trace(f"profile-{net}.json.gz")

    # Self time leaves out what an operation calls, so the rows add up to the step.
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = profiler.key_averages()
    spent = [(event.key, getattr(event, column) / PROFILED_STEPS / 1000) for event in events]
    return sorted(spent, key=lambda pair: -pair[1])
