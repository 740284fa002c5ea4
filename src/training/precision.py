"""The device that a run computes on, and the precision it computes in."""

import torch

from src.runs.environment import cpu_name


def resolve_precision(precision: str, accelerator: str) -> str:
    """Replace `auto` by `bf16-mixed` where the device has native bf16, otherwise by `32-true`.

    Args:
        precision: Lightning's `precision`, or `auto`; any other value is returned as it is.
        accelerator: Lightning's `accelerator`.
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        native = _cpu_has_bf16()
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def _cpu_has_bf16() -> bool:
    """Return whether the processor multiplies bf16 matrices by instructions of its own."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_tile"))


def forbid_tf32(precision: str) -> None:
    """Make `32-true` mean float32 on a GPU, where cuDNN rounds the factors to 11 bits by default.

    Call it before the first convolution. Both flags are older than PyTorch's `fp32_precision`, and
    the two interfaces must not be mixed.
    """
    if precision == "32-true":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def device_name(device: torch.device) -> str:
    """Return the name of a device for result rows, as `NVIDIA H200` or `AMD EPYC, 2 cores`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
