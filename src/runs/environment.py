"""What a run is executed with: versions, commit, processor, and process-wide settings."""

import ctypes
import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy")
# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """Return the commit of this code, `-dirty` if files differ from it; None if it is not known.

    GIT_COMMIT says it where the code was copied without its repository.
    """
    if "GIT_COMMIT" in os.environ:
        return os.environ["GIT_COMMIT"]
    # --exclude=*: a tag would replace the hash that --abbrev=40 writes in full.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def cpu_count() -> int:
    """Return the number of processor cores that this process may use."""
    # SLURM and containers give a process fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's name and its number of cores, as `AMD EPYC, 2 cores`."""
    # platform.processor() is empty or "x86_64" on Linux.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores"


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step instead of returning it to the system.

    Faulting the memory in again took ResNet-20 on two cores 5,000 page faults per step.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)  # what this process has loaded, so its own malloc
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MALLOC_MMAP_THRESHOLD, 2**30)


def silence_lightning() -> None:
    """Hide the tips and warnings of Lightning and torchmetrics; their errors are still raised."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module="pytorch_lightning|lightning_fabric|torchmetrics|torch.utils._pytree"
    )
