"""Print what each net of conf/model costs, next to what its paper prints.

Usage: python -m src.summary [NET ...] [-o nets.csv]
"""

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from src.cli import run_entry_point
from src.config import CONF
from src.models.complexity import (
    activation_bytes,
    count_multiply_adds,
    count_parameters,
    receptive_field,
)
from src.tables import Row, markdown_table, write_csv

PAPER_COMPLEXITY = Path(__file__).with_name("report") / "paper_complexity.csv"
PAPER_COLUMNS = ("parameters_printed", "multiply_adds_printed", "where")
PAPER_UNITS = {"parameters": 1e6, "multiply_adds": 1e9}  # the papers print millions and billions
IMAGE_SIZE = {10: 32, 1000: 224}  # by number of classes: CIFAR-10 and ImageNet
EXPLANATION = """\
In brackets: what the paper prints, in millions of parameters and billions of multiply-adds.
Multiply-adds and activations are for one image of `image` pixels a side. Activations: MB (1e6
bytes) that training in fp32 keeps for the backward pass. Receptive field: side length in pixels of
the square of the image that one pixel of the last map (before the average or the fc layers)
depends on."""


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m src.summary", description="Print what each net of conf/model costs."
    )
    parser.add_argument("nets", nargs="*", help="names of nets (default: all; takes half a minute)")
    parser.add_argument("-o", dest="out", type=Path, help="also write the table to this CSV file")
    options = parser.parse_args()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        rows = measure_nets(options.nets or own_nets())
    if options.out:
        write_csv(options.out, rows)
    print(nets_table(rows), EXPLANATION, compare_kernel_sizes(channels=512), sep="\n\n")


def own_nets() -> list[str]:
    """Return the names of all nets of conf/model; `custom` stands for those of others."""
    return [path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "custom"]


def measure_nets(names: Sequence[str]) -> list[Row]:
    """Measure some nets of conf/model, at the default `n` where `n` is free.

    Returns:
        One row for each net, by image size and family, shallow nets first.

    Raises:
        ValueError: A net has no file.
    """
    if "custom" in names:
        raise ValueError("custom stands for a net without a file: name a file of conf/model")
    # Not by read_csv, which makes numbers of them: 25.0 would lose the decimal that is printed.
    lines = csv.DictReader(PAPER_COMPLEXITY.read_text().splitlines())
    paper = {line["net"]: line for line in lines}
    configs = {name: compose("train", [f"model={name}"]).model for name in names}

    def order(name: str) -> tuple[int, str, int, str]:
        config = configs[name]
        # By length before name, so that resnet20 precedes resnet110.
        return IMAGE_SIZE[config.num_classes], config._target_, len(name), name

    return [measure(name, configs[name], paper.get(name)) for name in sorted(names, key=order)]


def measure(name: str, config: DictConfig, paper: dict[str, str] | None) -> Row:
    """Measure one net.

    Args:
        name: Its file in conf/model.
        config: The contents of that file.
        paper: Its row of paper_complexity.csv, or None.
    """
    with torch.device("meta"):  # shapes without memory
        net = instantiate(config, _convert_="all")
    size = IMAGE_SIZE[config.num_classes]
    image_shape = (3, size, size)
    paper = paper or dict.fromkeys(PAPER_COLUMNS, "")
    row = {
        "net": name if re.search(r"\d", name) else f"{name} n={config.n}",
        "image": size,
        "layers": net.depth,
        "parameters": count_parameters(net),
        "multiply_adds": count_multiply_adds(net, image_shape),
        "activations_mb": round(activation_bytes(net, image_shape) / 1e6, 3),
        "receptive_field": receptive_field(net),
        **{column: paper[column] for column in PAPER_COLUMNS},
    }
    differing = [
        key.replace("_", "-")
        for key, unit in PAPER_UNITS.items()
        if not rounds_to(row[key] / unit, row[f"{key}_printed"])
    ]
    # A net that differs has a reason in the file.
    return row | {"differs": f"{' and '.join(differing)}: {paper['why']}" if differing else ""}


def rounds_to(value: float, printed: str) -> bool:
    """Check that a value rounds to a printed number; an empty one fits every value."""
    # As many decimals as are printed: 3.857 rounds to 3.9, not to the printed 3.8.
    decimals = len(printed.partition(".")[2])
    return not printed or f"{value:.{decimals}f}" == printed


def nets_table(rows: Sequence[Row]) -> str:
    """Format the rows of `measure_nets` as a Markdown table."""
    lines = []
    for row in rows:
        net = [str(row[key]) for key in ("net", "image", "layers")]
        printed = {key: row[f"{key}_printed"] for key in PAPER_UNITS}
        costs = [f"{row[key]:,}" + (f" ({p})" if p else "") for key, p in printed.items()]
        costs += [f"{row['activations_mb']:.1f} MB", str(row["receptive_field"])]
        lines.append([*net, *costs, row["where"], row["differs"]])
    head = "net|image|layers|parameters|multiply-adds|activations|receptive field|printed in"
    return markdown_table([*head.split("|"), "reason for a difference"], lines)


def compare_kernel_sizes(channels: int) -> str:
    """Compare three 3x3 layers with one 7x7 layer, as the VGG paper does in its Sec. 2.3."""
    # As many channels in as out, as the VGG paper assumes.
    layers = [nn.Conv2d(channels, channels, 3, bias=False) for _ in range(3)]
    stack, single = nn.Sequential(*layers), nn.Conv2d(channels, channels, 7, bias=False)
    weights, weights_7x7 = count_parameters(stack), count_parameters(single)
    field, field_7x7 = receptive_field(stack), receptive_field(single)
    return (
        f"Three 3x3 layers of {channels} channels see {field}x{field} pixels with {weights:,} "
        f"weights; one 7x7 layer sees {field_7x7}x{field_7x7} with {weights_7x7:,}, "
        f"{100 * (weights_7x7 / weights - 1):.0f}% more."
    )


if __name__ == "__main__":
    run_entry_point(main)
