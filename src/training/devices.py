"""How many devices a run asks for, and which ones a sweep has."""

import math
import os

from src.runs.environment import cpu_count


def count_devices(devices: int | str | list[int]) -> float:
    """Return how many devices a value of `trainer.devices` asks for; infinity if it asks for all.

    Args:
        devices: their number, a list of their indices, or one of these as a string; -1 and `auto`
            ask for all.

    Raises:
        ValueError: it is none of these.
    """
    if devices in ("auto", -1, "-1"):
        return math.inf
    if isinstance(devices, list) or "," in str(devices):
        indices = devices if isinstance(devices, list) else str(devices).rstrip(",").split(",")
        count = len(indices)
        is_valid = all(str(index).isdecimal() for index in indices)
    else:
        is_valid = str(devices).isdecimal()
        count = int(devices) if is_valid else 0
    if not is_valid or not count:
        raise ValueError(
            f"trainer.devices={devices} must be a number from 1 on, a list of indices, or auto"
        )
    return count


def find_slots(accelerator: str, jobs_per_device: int) -> tuple[list[str], int]:
    """Return the devices, each as often as it takes a run, and the CPU threads of each run.

    Raises:
        ValueError: `jobs_per_device` is less than 1.
    """
    if jobs_per_device < 1:
        raise ValueError(f"sweep.jobs_per_device={jobs_per_device} must be at least 1")
    import torch

    devices = ["cpu"]
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = [str(index) for index in range(torch.cuda.device_count())]
        devices = visible.split(",") if visible else every
    slots = devices * jobs_per_device
    return slots, threads_of_each(len(slots))


def threads_of_each(processes: int) -> int:
    """Return the CPU threads of each of some processes.

    They share the cores, unless OMP_NUM_THREADS says how many threads each has.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, cpu_count() // processes)
