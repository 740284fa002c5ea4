"""Export a run: `python -m src.export RUN resnet56.onnx`; see --help."""

import argparse
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from src.cli import run_entry_point
from src.evaluation.model_card import Metadata, card, name_elsewhere, published_page, timm_config
from src.runs.atomic_io import atomic_write, writing
from src.runs.run_dir import RunDir

if TYPE_CHECKING:
    from torch import Tensor, nn

PUBLISHED = "model.safetensors"  # in a directory to upload


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m src.export",
        description="Write the final weights of a finished run, with torchvision's layer names, "
        "and how to prepare images for them: take pixel values from 0 to 255 as [N, 3, H, W] in "
        "the order `channels`, subtract `mean`, divide by `std`.",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    formats = (
        "FILE.pt or FILE.pth: a state dict, with channels, mean and std in FILE.json next to "
        "it; FILE.safetensors or FILE.onnx: with channels, mean and std as metadata inside; "
        "DIRECTORY: a safetensors file with its page and config, ready to upload"
    )
    parser.add_argument("out", type=Path, help=formats)
    arguments = parser.parse_args()
    export(arguments.run, arguments.out)
    print(f"written: {arguments.out}")


def export(run: Path, out: Path) -> None:
    """Write the weights of a run to a file, and next to it a page that says where they come from.

    Args:
        run: The run directory.
        out: The file; its suffix decides the format. Without one, the directory to publish.

    Raises:
        FileNotFoundError: If there is no such run, or its data are missing.
        ValueError: If the run is not finished, the suffix is unknown, a package is missing, or
            there is such a directory.
    """
    if out.suffix and out.suffix not in WRITERS:
        raise ValueError(f"{out} must end in one of {', '.join(WRITERS)}, or be a directory")
    if not out.suffix and out.exists():
        raise ValueError(f"{out} exists already: choose another directory, or remove it")
    run_dir = RunDir.open_finished(run)

    # Imported only here, because it imports torch: the errors above are reported at once.
    from src.models.weights import check_packages

    check_packages(out if out.suffix else out / PUBLISHED)
    net, image_shape, metadata = load_run(run_dir)
    if not out.suffix:
        publish(out, run_dir, net, metadata)
        return
    WRITERS[out.suffix](out, net, image_shape, metadata)
    write_text(out.with_suffix(".md"), card(out, metadata, run_dir))


def publish(out: Path, run_dir: RunDir, net: "nn.Module", metadata: Metadata) -> None:
    """Create a directory with the weights of a run, their page and the config, ready to upload.

    If torchvision and timm have the net, there is a config.json for timm as well.
    """
    part = out.with_name(out.name + ".part")  # so that the directory is complete or absent
    with writing(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    weights = part / PUBLISHED
    write_safetensors(weights, net, None, metadata)
    write_text(part / "README.md", published_page(weights, metadata, run_dir))

    # Without the paths of this machine.
    config = {key: value for key, value in run_dir.config.items() if key != "output_dir"}
    config["data"] = {key: value for key, value in config["data"].items() if key != "root"}
    write_text(part / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    architecture = name_elsewhere(metadata, run_dir)
    if architecture:
        classes = metadata["model"]["num_classes"]
        settings = timm_config(architecture, classes, metadata)
        write_text(part / "config.json", json.dumps(settings, indent=2))
    with writing(out):
        part.rename(out)


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    atomic_write(path, lambda file: file.write(text.encode()))


def load_run(run_dir: RunDir) -> tuple["nn.Module", tuple[int, int, int], Metadata]:
    """Load the net of a run, and read its data for their mean.

    Returns:
        The net with its final weights, the shape [C, H, W] of its images, and the metadata that a
        user of the net needs.
    """
    from src.evaluation.evaluator import load_nets, run_config

    config = run_dir.config
    metadata = {
        "net": config["choices"]["model"],
        "model": config["model"],
        "data": config["choices"]["data"],
    }
    if run_dir.task != "classification":
        return load_backbone_of(run_dir, metadata)
    (member,), data = load_nets([run_config(run_dir)])
    mean = channels_first(data.mean, data.image_shape)
    std = [1.0] * 3 if data.std is None else channels_first(data.std, data.image_shape)
    bgr = member.bgr
    metadata |= {
        "channels": "BGR" if bgr else "RGB",
        "mean": mean[::-1] if bgr else mean,  # read as RGB in any case
        "std": std[::-1] if bgr else std,
    }
    # In evaluation mode, or ONNX would export batch norm as in training.
    return member.net.eval(), data.image_shape, metadata


def load_backbone_of(
    run_dir: RunDir, metadata: Metadata
) -> tuple["nn.Module", tuple[int, int, int], Metadata]:
    """Load the net of a detector or segmenter without their own layers, as `load_run` does."""
    from src.evaluation.task_evaluator import load_task

    module, data = load_task(run_dir)
    normalization = {key: getattr(module, key).flatten().tolist() for key in ("mean", "std")}
    metadata |= {"channels": "RGB", **normalization}
    return module.net.eval(), data.image_shape, metadata


def channels_first(values: "Tensor", image_shape: tuple[int, int, int]) -> list[Any]:
    """Convert a mean or std that broadcasts over pixels [H, W, 3] to nested lists.

    Returns:
        [3] if it is the same for all pixels, otherwise [3, H, W].
    """
    # A mean per channel comes as [3] or, from ImageNet, as a row of pixels [W, 3].
    pixels = values.expand(*image_shape[1:], 3)
    constant = (pixels == pixels[0, 0]).all()
    return (pixels[0, 0] if constant else pixels.movedim(-1, 0)).tolist()


def write_state_dict(out: Path, net: "nn.Module", _: object, metadata: Metadata) -> None:
    """Write a bare state dict with torch.save, and the metadata to a JSON file next to it."""
    import torch

    atomic_write(out, lambda file: torch.save(net.state_dict(), file))
    write_text(out.with_suffix(".json"), json.dumps(metadata))


def write_safetensors(out: Path, net: "nn.Module", _: object, metadata: Metadata) -> None:
    """Write a safetensors file with the metadata in its header."""
    from safetensors.torch import save

    # safetensors stores no strides, and the weights may be in channels-last order.
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    atomic_write(out, lambda file: file.write(save(state, _as_text(metadata))))


def write_onnx(
    out: Path, net: "nn.Module", image_shape: tuple[int, int, int], metadata: Metadata
) -> None:
    """Write an ONNX graph from `images` [N, C, H, W], for any N, to `scores` [N, classes]."""
    import torch

    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PyTorch's own
        program = torch.onnx.export(
            net,
            (torch.zeros(2, *image_shape),),  # an N of 1 would be taken for a constant
            input_names=["images"],
            output_names=["scores"],
            # Batches of any size; the height and width stay fixed.
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None  # only the older, TorchScript-based exporter returns None
    program.model.metadata_props.update(_as_text(metadata))
    atomic_write(out, lambda file: file.write(program.model_proto.SerializeToString()))


def _as_text(metadata: Metadata) -> dict[str, str]:
    """Convert metadata for formats that store only text: all but text becomes JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


WRITERS = {
    ".pt": write_state_dict,
    ".pth": write_state_dict,
    ".safetensors": write_safetensors,
    ".onnx": write_onnx,
}


if __name__ == "__main__":
    run_entry_point(main)
