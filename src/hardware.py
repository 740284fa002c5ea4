"""What a run runs on: the device, what it does well, the versions of what runs on it."""

import ctypes
import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch


def resolve_precision(precision: str, accelerator: str, **_: object) -> str:
    """`auto` as bf16-mixed where the device computes in bf16 natively, else as 32-true; the rest as it is."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or a processor's name and the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def versions() -> dict[str, str]:
    names = ("torch", "torchvision", "pytorch-lightning", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def git_commit() -> str | None:
    """The commit of this code, `-dirty` if files differ from it; None where it lies in no git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next step rather than to give it back and fault it in again.

    That saved a resnet20 on two cores 5,000 page faults a step.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)


def quiet_lightning() -> None:
    """Leaves the remarks of Lightning and torchmetrics out of the output; their errors still come through."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torchmetrics|torch.utils._pytree")
