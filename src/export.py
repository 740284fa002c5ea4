"""Exports a run's final weights: `python -m src.export runs/cifar10/resnet56-s0 resnet56.onnx`; see --help."""

import argparse
import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import run_entry_point as entry
from src.config import check_targets
from src.runs.atomic_io import atomic_write
from src.runs.run_dir import RunDir

if TYPE_CHECKING:
    from torch import Tensor, nn

Metadata = dict[str, Any]

PACKAGES = {".safetensors": ("safetensors",), ".onnx": ("onnx", "onnxscript")}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.export",
        description="Writes the final weights of a finished run, layers named as in torchvision. With them goes what "
        "the net expects: images [N, 3, H, W] of 0 to 255, `channels` in this order, less `mean`, divided by `std`.",
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument(
        "out",
        type=Path,
        help="FILE.pt or .pth: a state dict, beside it FILE.json with the mean and the rest; FILE.safetensors or "
        "FILE.onnx: the same as metadata inside",
    )
    options = parser.parse_args()
    export(options.run, options.out)
    print(f"written: {options.out}")


def export(run: Path, out: Path) -> None:
    """Writes the weights of a run folder to a file, whose suffix says how.

    Raises FileNotFoundError if the run or its data are not there, ValueError if the run is not finished, for another
    suffix, or if a package is missing.
    """
    if out.suffix not in WRITERS:
        raise ValueError(f"{out} must end in one of {', '.join(WRITERS)}")
    missing = [package for package in PACKAGES.get(out.suffix, ()) if find_spec(package) is None]
    if missing:
        install = "uv pip install --python .venv/bin/python --group export"
        raise ValueError(f"{out.suffix} files need {' and '.join(missing)}, which {install} brings")
    folder = RunDir.open_trained(run)
    check_targets(folder.config, run)
    if folder.summary is None:
        raise ValueError(f"{run} is not finished: the command that began it goes on with it")
    WRITERS[out.suffix](out, *read_run(folder))


def read_run(folder: RunDir) -> tuple["nn.Module", tuple[int, int, int], Metadata]:
    """The net with its final weights, the shape [C, H, W] of its images, and what else one must know to use it.

    The data of the run are read, for their mean.
    """
    from hydra.utils import instantiate

    from src.evaluation.weights import load_weights, read_weights

    config = folder.config
    net = instantiate(config["model"], _convert_="all").eval()
    load_weights(net, read_weights(folder.last_checkpoint))
    data = instantiate(config["data"], seed=config["seed"], _convert_="all")
    data.prepare_data()
    data.setup()
    mean = channels_first(data.mean, data.image_shape)
    std = [1.0] * 3 if data.std is None else channels_first(data.std, data.image_shape)
    bgr = config["data"].get("bgr", False)
    metadata = {
        "net": config["choices"]["model"],
        "model": config["model"],
        "data": config["choices"]["data"],
        "channels": "BGR" if bgr else "RGB",
        "mean": mean[::-1] if bgr else mean,
        "std": std[::-1] if bgr else std,
    }
    return net, data.image_shape, metadata


def channels_first(values: "Tensor", image: tuple[int, int, int]) -> list[Any]:
    """Values that go with pixels [H, W, 3], in whatever shape, as [3] if they are the same for all, else [3, H, W]."""
    pixels = values.expand(*image[1:], 3)
    same = (pixels == pixels[0, 0]).all()
    return (pixels[0, 0] if same else pixels.movedim(-1, 0)).tolist()


def write_state_dict(out: Path, net: "nn.Module", _: object, metadata: Metadata) -> None:
    """A bare state dict for torch.load, and beside it a JSON file."""
    import torch

    atomic_write(out, lambda file: torch.save(net.state_dict(), file))
    atomic_write(out.with_suffix(".json"), lambda file: file.write(json.dumps(metadata).encode()))


def write_safetensors(out: Path, net: "nn.Module", _: object, metadata: Metadata) -> None:
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    atomic_write(out, lambda file: file.write(save(state, as_text(metadata))))


def write_onnx(
    out: Path, net: "nn.Module", image: tuple[int, int, int], metadata: Metadata
) -> None:
    """A graph from `images` [N, C, H, W] to `scores` [N, classes], for any N and this one size of images."""
    import torch

    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # of PyTorch's use of itself
        program = torch.onnx.export(
            net,
            (torch.zeros(2, *image),),
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    program.model.metadata_props.update(as_text(metadata))
    atomic_write(out, lambda file: file.write(program.model_proto.SerializeToString()))


def as_text(metadata: Metadata) -> dict[str, str]:
    """Metadata for formats that hold text alone: JSON, but for what is text already."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


WRITERS: dict[str, Callable[..., None]] = {
    ".pt": write_state_dict,
    ".pth": write_state_dict,
    ".safetensors": write_safetensors,
    ".onnx": write_onnx,
}


if __name__ == "__main__":
    entry(main)
