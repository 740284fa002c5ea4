"""Export a run: `python -m src.export runs/cifar10/resnet56-s0 resnet56.onnx`; see --help."""

import argparse
import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import run_entry_point
from src.runs.atomic_io import atomic_write
from src.runs.run_dir import RunDir

if TYPE_CHECKING:
    from torch import Tensor, nn

Metadata = dict[str, Any]


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
        "it; FILE.safetensors or FILE.onnx: with channels, mean and std as metadata inside"
    )
    parser.add_argument("out", type=Path, help=formats)
    arguments = parser.parse_args()
    export(arguments.run, arguments.out)
    print(f"written: {arguments.out}")


def export(run: Path, out: Path) -> None:
    """Write the weights of a run to a file, and next to it a page that says where they come from.

    Args:
        run: The run directory.
        out: The file; its suffix decides the format.

    Raises:
        FileNotFoundError: If there is no such run, or its data are missing.
        ValueError: If the run is not finished, the suffix is unknown or a package is missing.
    """
    if out.suffix not in WRITERS:
        raise ValueError(f"{out} must end in one of {', '.join(WRITERS)}")
    run_dir = RunDir.open_finished(run)

    # Imported only here, because it imports torch: the errors above are reported at once.
    from src.models.weights import check_packages

    check_packages(out)
    net, image_shape, metadata = load_run(run_dir)
    WRITERS[out.suffix](out, net, image_shape, metadata)
    assert run_dir.summary is not None  # as it is finished
    text = card(out, metadata, command(run_dir), run_dir.summary)
    atomic_write(out.with_suffix(".md"), lambda file: file.write(text.encode()))


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


def command(run_dir: RunDir) -> str:
    """Return the command line that trains a run."""
    # The precision is not in the key of an fp32 run, but `auto` may mean another elsewhere.
    key = {"trainer.precision": run_dir.config["trainer"]["precision"]} | run_dir.key
    n = run_dir.config["model"].get("n")
    model = run_dir.config["choices"]["model"]
    parts = [f"model={model}", f"data={key['data']}", f"seed={key['seed']}"]
    if model != key["net"]:
        parts.append(f"n={n}")
    own = ("data", "net", "seed")
    parts += [f"{name}={value}" for name, value in key.items() if name not in own]
    return f"python -m src.train {' '.join(parts)}"


def card(out: Path, metadata: Metadata, command: str, summary: dict[str, Any]) -> str:
    """Return a page in Markdown that says where a file of weights comes from."""
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    rows = {
        **results(metadata, summary),
        "training": f"{summary['iterations']:,} iterations on {summary['train_images']:,} images "
        f"in {summary['precision']}, {summary['seconds']:,.0f} s",
        "command": f"`{command}`",
        "commit": summary["git_commit"],
        "hardware": f"{summary['device']} (world size {summary['devices']})",
        "versions": versions,
        "parameters": f"{summary['parameters']:,}",
        "license": "MIT",
        "SHA-256": f"`{digest}`",
    }
    lines = [f"# {out.name}", "", f"{metadata['net']} trained on {metadata['data']}.", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines) + "\n"


def results(metadata: Metadata, summary: dict[str, Any]) -> dict[str, str]:
    """Return what the page says of the results."""
    tested = (
        f"the final weights on the complete test set of {metadata['data']}, computed in "
        f"{summary.get('eval_precision', summary['precision'])}"
    )
    contents = (
        "the net without its classifier and without the layers of its task: `weights=` of "
        "`task=detection` and `task=segmentation` starts from it"
    )
    if "test_ap" in summary:
        aps = f"{summary['test_ap']:.1f} (AP50 {summary['test_ap50']:.1f})"
        return {"test AP": f"{aps}, {tested}", "contents": contents}
    if "test_iou" in summary:
        return {"test mean IoU": f"{summary['test_iou']:.1f}, {tested}", "contents": contents}
    return {
        "test error": f"{summary['test_error']:.2f}% (top-5 {summary['test_error_top5']:.2f}%), "
        f"{tested}",
        "training error": f"{summary['train_error']:.2f}%, of augmented images since the last "
        "evaluation",
    }


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
    atomic_write(out.with_suffix(".json"), lambda file: file.write(json.dumps(metadata).encode()))


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
