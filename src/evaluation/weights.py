"""Reads weights, those of our own checkpoints and those from elsewhere, and never runs what a file may hold."""

import re
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: bare or under `state_dict`, its keys with or without `module.` or `net.` in front.

    A file is torch.save's, or by its name .safetensors. Raises FileNotFoundError, or ValueError if the file holds
    anything but tensors and plain values, or if the package that reads it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        install = "uv pip install --python .venv/bin/python --group export"
        raise ValueError(f"{path} needs safetensors, which {install} brings") from error
    except Exception as error:  # garbage can break a reader anywhere
        maker = "safetensors" if path.suffix == ".safetensors" else "torch.save"
        raise ValueError(f"{path} is not a file of tensors alone, as {maker} makes one of a state dict") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    state = {re.sub(r"^(module\.|net\.)+", "", str(key)): value for key, value in state.items()}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: a mapping of names to tensors, bare or under `state_dict`")
    return state


def load_weights(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts a state dict into a net. Raises ValueError, naming the first keys that differ, if it is of another.

    Biases of convolutions that the net has none for, batch norm taking them away again, are taken in.
    """
    state = without_biases(net, state)
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    # Weights saved before PyTorch 0.4.1 do not count batches; with a fixed momentum nothing depends on it.
    differ = [k for k in {**own, **given} if own.get(k) != given.get(k) and not k.endswith("num_batches_tracked")]
    if differ:
        first = ", ".join(f"{k}: {given.get(k, 'none')} given, {own.get(k, 'none')} in the net" for k in differ[:3])
        raise ValueError(f"these are weights of another net: {len(differ)} keys differ, first {first}")
    net.load_state_dict(state, strict=False)


def without_biases(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with each such bias subtracted from the running mean of the batch norm that follows.

    When testing that is the same, exactly.
    """
    state = dict(state)
    for (name, layer), (norm_name, norm) in pairwise(net.named_modules()):
        bias, mean = f"{name}.bias", f"{norm_name}.running_mean"
        follows = isinstance(layer, nn.Conv2d) and layer.bias is None and isinstance(norm, nn.BatchNorm2d)
        if follows and {bias, mean} <= state.keys() and state[bias].shape == state[mean].shape:
            state[mean] = state[mean] - state.pop(bias)
    return state
