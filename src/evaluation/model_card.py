"""The page of published weights: where they come from, their results, and how to load them."""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from src.runs.config_files import file_defaults
from src.runs.run_dir import RunDir

Metadata = dict[str, Any]

# The values with which our net equals the one of the same name in torchvision and timm, whose
# bottlenecks stride in the 3x3 layer.
SAME_ELSEWHERE = {
    "_target_": "src.models.resnet.resnet_imagenet",
    "shortcut": "B",
    "stride_in_1x1": False,
    "groups": 1,
    "width_per_group": 64,
    "dilate": [False] * 4,
    "caffe_pool": False,
    "norm": "batch",
}


def command(run_dir: RunDir) -> str:
    """Return the command line that trains a run."""
    choices, key = run_dir.config["choices"], run_dir.key
    words = {"model": choices["model"], "data": key["data"], "seed": key["seed"]}
    if choices["model"] != key["net"]:
        words["n"] = run_dir.config["model"]["n"]
    # The precision is not in the key of an fp32 run, but `auto` may mean another elsewhere.
    words["trainer.precision"] = run_dir.config["trainer"]["precision"]
    implied = {}
    if choices["recipe"] != choices["data"]:
        words["recipe"] = choices["recipe"]
        implied = file_defaults("recipe", choices["recipe"])
    # Keys that the words above, or the file of the recipe, set already.
    are_set = {"net", "recipe", *(k for k, value in implied.items() if key.get(k) == value)}
    words |= {name: value for name, value in key.items() if name not in are_set}
    return " ".join(["python -m src.train", *(_argument(k, v) for k, v in words.items())])


def _argument(key: str, value: Any) -> str:
    """Return such as `n=9` or `'recipe.schedule.milestones=[0.5,0.8]'`, quoted for a shell."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return shlex.quote(f"{key}={text}")


def card(weights: Path, metadata: Metadata, run_dir: RunDir) -> str:
    """Return a page in Markdown that says where a file of weights comes from."""
    summary = run_dir.summary
    assert summary is not None, run_dir.path
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    rows = {
        **results(metadata, summary),
        "training": f"{summary['iterations']:,} iterations on {summary['train_images']:,} images "
        f"in {summary['precision']}, {summary['seconds']:,.0f} s",
        "command": f"`{command(run_dir)}`",
        "commit": summary["git_commit"],
        "hardware": f"{summary['device']} (world size {summary['devices']})",
        "versions": versions,
        "parameters": f"{summary['parameters']:,}",
        "license": "MIT",
        "SHA-256": f"`{digest}`",
    }
    lines = [f"# {weights.name}", "", f"{metadata['net']} trained on {metadata['data']}.", ""]
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
        "`task=detection`, `task=segmentation` and `task=localization` starts from it"
    )
    if "test_ap" in summary:
        aps = f"{summary['test_ap']:.1f} (AP50 {summary['test_ap50']:.1f})"
        return {"test AP": f"{aps}, {tested}", "contents": contents}
    if "test_iou" in summary:
        return {"test mean IoU": f"{summary['test_iou']:.1f}, {tested}", "contents": contents}
    if "test_localization_error" in summary:
        error = f"{summary['test_localization_error']:.2f}%, the class given, {tested}"
        return {"test localization error": error, "contents": contents}
    return {
        "test error": f"{summary['test_error']:.2f}% (top-5 {summary['test_error_top5']:.2f}%), "
        f"{tested}",
        "training error": f"{summary['train_error']:.2f}%, of augmented images since the last "
        "evaluation",
    }


def name_elsewhere(metadata: Metadata, run_dir: RunDir) -> str | None:
    """Return what torchvision and timm call a net, None if they have none that is the same."""
    if run_dir.task != "classification":
        return None  # without its classifier
    model = metadata["model"]
    differs = any(
        model.get(key) != value
        for key, value in SAME_ELSEWHERE.items()
        if key != "stride_in_1x1" or model.get("depth", 0) >= 50  # others have no bottleneck
    )
    return None if differs or metadata["channels"] != "RGB" else f"resnet{model['depth']}"


def timm_config(architecture: str, num_classes: int, metadata: Metadata) -> dict[str, Any]:
    """Return the config.json from which timm makes a net and prepares its images.

    timm's pixels are from 0 to 1, and its mean is one of each channel: that of a mean image.
    """
    mean, std = ([_mean(channel) / 255 for channel in metadata[key]] for key in ("mean", "std"))
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": mean,
            "std": std,
            "num_classes": num_classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def _mean(channel: Any) -> float:
    """Return the mean of a channel of a mean image, nested lists, or of a single number."""
    if not isinstance(channel, list):
        return float(channel)
    return sum(map(_mean, channel)) / len(channel)


def published_page(weights: Path, metadata: Metadata, run_dir: RunDir) -> str:
    """Return the README.md of a directory to upload: the page, and how to load the weights."""
    architecture = name_elsewhere(metadata, run_dir)
    classifies = run_dir.task == "classification"
    model = metadata["model"]
    header = [
        "---",
        "license: mit",
        f"library_name: {'timm' if architecture else 'pytorch'}",
        f"pipeline_tag: {'image-classification' if classifies else 'image-feature-extraction'}",
        f"datasets: [{metadata['data']}]",
        "---",
        "",
    ]
    usage = ["", "## Use", ""]
    if classifies:
        usage += [f"    python -m src.evaluate weights={weights.name}", ""]
    usage += [
        "For other programs: pixels from 0 to 255 as [N, 3, H, W] in the order `channels`, minus "
        "`mean`, divided by `std`, all in the metadata of the file. `config.yaml` is the config of "
        "the run.",
    ]
    if architecture:
        usage += [
            "",
            "    from safetensors.torch import load_file",
            f"    net = torchvision.models.{architecture}(num_classes={model['num_classes']})",
            f'    net.load_state_dict(load_file("{weights.name}"))',
            '    net = timm.create_model("local-dir:DIRECTORY", pretrained=True)  # or hf-hub:NAME',
        ]
    return "\n".join(header) + card(weights, metadata, run_dir) + "\n".join(usage) + "\n"
