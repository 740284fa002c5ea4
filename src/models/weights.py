"""Load weights, from our own checkpoints or from elsewhere, without running code from the file."""

import hashlib
import json
import re
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# DataParallel prepends `module.` to the names, our LightningModule `net.`, that of others `model.`.
OUR_PREFIX = "net."
PREFIX = re.compile(r"^(module|model|net)\.")
# What files of these formats need besides the packages of a plain installation.
PACKAGES = {".safetensors": ("safetensors",), ".onnx": ("onnx", "onnxscript")}
INSTALL_PACKAGES = "uv pip install --python .venv/bin/python --group export"


def check_packages(path: Path) -> None:
    """Check that the packages for a file's format are installed.

    Raises:
        ValueError: If one is missing.
    """
    missing = [name for name in PACKAGES.get(path.suffix, ()) if find_spec(name) is None]
    if missing:
        packages = " and ".join(missing)
        raise ValueError(f"{path.suffix} files need {packages}: {INSTALL_PACKAGES}")


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a file of weights says of its net, as `src.export` writes it; else nothing.

    A .safetensors file has it in its header, a .pt or .pth file in a JSON file next to it.
    """
    if path.suffix in (".pt", ".pth") and path.with_suffix(".json").is_file():
        with suppress(ValueError):  # a file of something else
            content = json.loads(path.with_suffix(".json").read_text())
            return content if isinstance(content, dict) and "mean" in content else {}
        return {}
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    check_packages(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
    except SafetensorError:
        return {}  # `read_weights` reports that the file is damaged
    return {key: json.loads(text) if text[:1] in "[{" else text for key, text in texts.items()}


def read_weights(path: Path, net: nn.Module) -> dict[str, Tensor]:
    """Read the state dict in a file, by the names that a net gives its layers.

    Names that others use for the same layers are accepted, with a message.

    Args:
        path: A .safetensors file, or one that torch.save wrote. The state dict may be bare or
            under the key `state_dict`, as in a checkpoint of Lightning.
        net: The net that the weights are for; it stays as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds anything but tensors and plain values, or if safetensors is
            not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    check_packages(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            # Unpickling can run any code; weights_only refuses everything but tensors and the like.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the readers raise anything
        writer = "safetensors" if path.suffix == ".safetensors" else "torch.save"
        raise ValueError(
            f"{path} is damaged or contains more than tensors: it must be a state dict, saved by "
            f"{writer}"
        ) from error

    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = _with_names_of(net, state, path)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no state dict, that is, a dict from names to tensors, bare or under "
            "the key `state_dict`"
        )
    return state


def _with_names_of(net: nn.Module, state: dict[Any, Any], path: Path) -> dict[str, Any]:
    """Return a state dict by the names that a net, or torchvision, gives its layers."""
    known = net.state_dict().keys()
    renamed, accepted = {}, set()
    for key, value in state.items():
        names = [str(key)]
        while PREFIX.match(names[-1]):
            names.append(PREFIX.sub("", names[-1]))
        # A net may itself have a layer named `model` or `linear`, so its own names come first.
        bare = next((name for name in names if name in known), names[-1])
        name = bare if bare in known else re.sub(r"^linear\.", "fc.", bare)
        renamed[name] = value
        if name != bare:
            accepted.add(f"{bare} as {name}")
        if (prefix := names[0].removesuffix(bare)) not in ("", OUR_PREFIX):
            accepted.add(f"{prefix}*")
    if accepted:
        print(f"{path}: accepted {', '.join(sorted(accepted))}", flush=True)
    return renamed


def hash_weights(net: nn.Module) -> str:
    """Return the SHA-256 of the bytes of all parameters and buffers, in the net's order."""
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        # The bytes in the order of the shape, also of a net in channels-last memory; as uint8,
        # because NumPy has no bfloat16.
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into a net.

    A convolution's bias that the net does not have is folded into the batch norm after it.

    Raises:
        ValueError: If the names or shapes differ from the net's; the first of them are named.
    """
    state = _fold_conv_biases(net, state)
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    # Weights saved before PyTorch 0.4.1 lack num_batches_tracked. With a fixed momentum, nothing
    # depends on it.
    different = [
        key
        for key in {**ours, **given}
        if ours.get(key) != given.get(key) and not key.endswith("num_batches_tracked")
    ]
    if different:
        first = ", ".join(
            f"{key}: {given.get(key, 'missing')} in the weights, {ours.get(key, 'missing')} in "
            "the net"
            for key in different[:3]
        )
        raise ValueError(
            f"the weights are of another net: {len(different)} keys differ, first {first}"
        )
    net.load_state_dict(state, strict=False)  # checked above, with a better message


def load_backbone(net: Any, state: dict[str, Tensor], regions: bool) -> None:
    """Load weights into a net whose classifier is removed, whatever classes they are of.

    Args:
        net: A net that has its classifier still, which is then removed.
        state: A state dict with or without a classifier.
        regions: Whether the net keeps the layers of its `region_features`.

    Raises:
        ValueError: As for `load_weights`.
    """
    with_classifier = net.state_dict().keys()
    net.remove_classifier(regions)
    of_classifier = with_classifier - net.state_dict().keys()
    load_weights(net, {key: value for key, value in state.items() if key not in of_classifier})


def _fold_conv_biases(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Subtract biases of convolutions from the running mean of the batch norm that follows.

    Batch norm removes any constant that its input contains, so in evaluation the result is
    exactly that of the convolution with its bias. The authors' released ResNet-50 has such a bias.
    """
    state = dict(state)  # the caller's stays as it is
    # named_modules() has the order of registration: a batch norm comes after its convolution.
    for (name, layer), (norm_name, norm) in pairwise(net.named_modules()):
        if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        bias, mean = f"{name}.bias", f"{norm_name}.running_mean"
        foldable = layer.bias is None and {bias, mean} <= state.keys()
        if foldable and state[bias].shape == state[mean].shape:
            state[mean] = state[mean] - state.pop(bias)
    return state
