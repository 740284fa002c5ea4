"""The table of nets: `python -m src.summary -o nets.csv`; what each net of conf/model costs, and what its paper prints."""

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from src.cli import run_entry_point as entry
from src.config import CONF
from src.models.complexity import activation_bytes, multiply_adds, parameters, receptive_field
from src.tables import markdown_table, write_csv

Row = dict[str, Any]

PRINTED = (
    Path(__file__).with_name("report") / "paper_complexity.csv"
)  # what the papers print, to the digit
UNITS = {"parameters": 1e6, "multiply_adds": 1e9}  # in which they print it
IMAGE = {10: 32, 1000: 224}  # pixels a side in CIFAR-10 and ImageNet, by their number of classes
EXPLANATION = """\
In brackets what the paper prints, in millions of parameters and billions of multiply-adds. Multiply-adds and
activations are for one image of so many pixels a side as `image` says. Activations: MB (1e6 bytes) kept in fp32 for
the backward pass of training. Last map sees: pixels a side of the image that one pixel of the map before the average
or the fc layers depends on."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.summary", description="Prints what each net of conf/model costs."
    )
    parser.add_argument("nets", nargs="*", help="names of nets (default: all; takes half a minute)")
    parser.add_argument("-o", dest="out", type=Path, help="write the table to this CSV file, too")
    options = parser.parse_args()
    show_nets(options.nets, options.out)


def show_nets(names: Sequence[str] = (), out: Path | None = None) -> None:
    """Prints the table of some nets, or of all, and writes it to a CSV file if one is given."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        rows = measure_nets(names or [path.stem for path in (CONF / "model").glob("*.yaml")])
    if out:
        write_csv(out, rows)
    print(nets_table(rows), EXPLANATION, three_against_one(channels=512), sep="\n\n")


def measure_nets(names: Sequence[str]) -> list[Row]:
    """A row for each of these files of conf/model, at the `n` that is there if nobody says one."""
    with open(PRINTED, newline="") as file:
        printed = {line["net"]: line for line in csv.DictReader(file)}
    configs = {name: compose("train", [f"model={name}"]).model for name in names}
    # By image and family; a shorter name first brings resnet20 before resnet110.
    order = sorted(
        names,
        key=lambda name: (
            IMAGE[configs[name].num_classes],
            configs[name]._target_,
            len(name),
            name,
        ),
    )
    return [measure(name, configs[name], printed.get(name, {})) for name in order]


def measure(name: str, config: DictConfig, printed: dict[str, str]) -> Row:
    """The row of one net, whose weights take no memory. `printed` is its line of nets.csv, or empty."""
    with torch.device("meta"):
        net = instantiate(config, _convert_="all")
    side = IMAGE[config.num_classes]
    image = (3, side, side)
    row = {
        "net": name if re.search(r"\d", name) else f"{name} n={config.n}",
        "image": side,
        "layers": net.depth,
        "parameters": parameters(net),
        "multiply_adds": multiply_adds(net, image),
        "activations_mb": round(activation_bytes(net, image) / 1e6, 3),
        "last_map_sees": receptive_field(net),
    }
    row |= {f"{key}_printed": printed.get(f"{key}_printed", "") for key in UNITS}
    differ = [
        key for key, unit in UNITS.items() if not rounds_to(row[key] / unit, row[f"{key}_printed"])
    ]
    remark = f"{' and '.join(differ)}: {printed['why'] or 'counted otherwise'}" if differ else ""
    return row | {"where": printed.get("where", ""), "differs": remark.replace("_", "-")}


def rounds_to(value: float, printed: str) -> bool:
    """Whether a value is what is printed, to as many digits as are printed; nothing printed fits all."""
    return not printed or f"{value:.{len(printed.partition('.')[2])}f}" == printed


def nets_table(rows: Sequence[Row]) -> str:
    """The rows of `measure_nets` in Markdown."""
    head = (
        "net",
        "image",
        "layers",
        "parameters",
        "multiply-adds",
        "activations",
        "last map sees",
        "printed in",
    )
    lines = []
    for row in rows:
        counts = [
            f"{row[key]:,}" + (f" ({p})" if (p := row[f"{key}_printed"]) else "") for key in UNITS
        ]
        plain = [str(row[key]) for key in ("net", "image", "layers")]
        cost = [f"{row['activations_mb']:.1f} MB", str(row["last_map_sees"])]
        lines.append([*plain, *counts, *cost, row["where"], row["differs"]])
    return markdown_table([*head, "where that differs"], lines)


def three_against_one(channels: int) -> str:
    """What the VGG paper says for small kernels (its Sec. 2.3), measured."""
    nets = [
        [nn.Conv2d(channels, channels, size, bias=False) for _ in range(layers)]
        for layers, size in ((3, 3), (1, 7))
    ]
    (sees, weights), (sees_one, weights_one) = (
        (receptive_field(n), parameters(n)) for n in map(nn.ModuleList, nets)
    )
    return (
        f"Three 3x3 layers of {channels} channels see {sees}x{sees} pixels with {weights:,} weights; one 7x7 layer "
        f"sees {sees_one}x{sees_one} with {weights_one:,}, {100 * (weights_one / weights - 1):.0f}% more."
    )


if __name__ == "__main__":
    entry(main)
