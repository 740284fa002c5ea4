"""What the figures share: labels, colors, the range of the error axis, legends and files."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # draws into files, with no display
import numpy as np
from matplotlib import pyplot as plt

from src.report.comparison import variant_labels
from src.report.results import Run

# Okabe and Ito's colors for color-blind readers, from dark to light for print in gray. There is
# one marker fewer than colors, so color and marker together only repeat after 42 styles.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vP"
LETTERS_PER_INCH = 13  # of a legend's text
HIGH_ERROR = 60.0  # percent


class Style(NamedTuple):
    """How runs of one depth are drawn, ordered by depth.

    `label` is such as `20 layers, shortcut B`.
    """

    order: int
    label: str
    color: str
    marker: str

    @classmethod
    def numbered(cls, order: int, label: str) -> "Style":
        """Return the style of the order-th depth or net of a figure."""
        return cls(order, label, COLORS[order % len(COLORS)], MARKERS[order % len(MARKERS)])


def styles(runs: Sequence[Run]) -> list[Style]:
    """Return a style for each run: one color per depth, in all families, as in Fig. 6.

    A depth has several styles if its runs differ in more than net and seed.
    """
    depths = [run.row["depth"] for run in runs]
    kinds = list(zip(depths, _labels(runs), strict=True))
    order = {kind: i for i, kind in enumerate(sorted(set(kinds)))}
    return [
        Style.numbered(order[depth, label], ", ".join(filter(None, (f"{depth} layers", label))))
        for depth, label in kinds
    ]


def net_labels(runs: Sequence[Run]) -> list[str]:
    """Name each run's net such that it differs from the others: `plain-20, bf16-mixed`."""
    names = [f"{run.row['family']}-{run.row['depth']}" for run in runs]
    return [", ".join(filter(None, pair)) for pair in zip(names, _labels(runs), strict=True)]


def _labels(runs: Sequence[Run]) -> list[str]:
    return variant_labels([run.config for run in runs])


def error_limit(runs: Sequence[Run]) -> float:
    """Return the upper end of an error axis in percent: it fits the second half of each curve.

    As in Fig. 6, nets with more than 60% may be cut off: if the others then need less than half
    of the axis, and at least three nets of each such family remain.
    """
    nets = [(run.row["family"], run.row["depth"], _late_maximum(run)) for run in runs]
    highest = max((error for *_, error in nets), default=0)
    low = max((error for *_, error in nets if error <= HIGH_ERROR), default=0)
    remaining = {(family, depth) for family, depth, error in nets if 0 < error <= HIGH_ERROR}
    cut = {family for family, _, error in nets if error > HIGH_ERROR}
    if 2 * low < highest and all(sum(f == family for f, _ in remaining) >= 3 for family in cut):
        highest = low
    return 1.1 * highest + 0.5 if 0 < highest <= HIGH_ERROR else 100.0


def _late_maximum(run: Run) -> float:
    """Return the highest error in the second half of a run's curves; 0 if it has none."""
    curves = [run.curve("train/error"), run.curve(f"{run.held_out}/error")]
    late = [error for curve in curves for _, error in curve[len(curve) // 2 :]]
    return max(filter(math.isfinite, late), default=0.0)


def new_figure(
    rows: int, columns: int, width: float = 4.2, **options: Any
) -> tuple[plt.Figure, np.ndarray]:
    """Make a figure whose files do not change from one drawing to the next.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Of each axes, in inches.
        options: For `plt.subplots`.

    Returns:
        The figure, and its axes of shape [rows, columns].
    """
    # A fixed salt makes the ids in an SVG file reproducible; "none" keeps its text as text.
    plt.rcParams.update({"svg.hashsalt": "", "svg.fonttype": "none", "font.size": 9})
    size = (width * columns, 3.2 * rows + 0.3)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **options
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure: plt.Figure, entries: Iterable[tuple[Style, dict]], title: str) -> None:
    """Add a legend below the axes, with one entry for each style.

    Args:
        figure: It becomes higher by the legend's rows.
        entries: The style of each run, and what else its line looks like.
        title: Above the entries.
    """
    unique = dict(sorted(entries, key=lambda entry: entry[0]))
    lines = [
        plt.Line2D([], [], color=style.color, marker=style.marker, **look)
        for style, look in unique.items()
    ]
    labels = [style.label for style in unique]
    longest = max(map(len, labels)) + 8  # 8 for the line and the gap
    columns = int(figure.get_figwidth() * LETTERS_PER_INCH / longest)
    columns = max(1, min(len(labels), columns))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(labels) / columns))
    figure.legend(
        lines, labels, title=title, frameon=False, loc="outside lower center", ncols=columns
    )


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure to `path`.svg and `path`.png, and close it."""
    # Not with_suffix, which would cut a name like resnet20-lr0.1.
    figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})
    figure.savefig(path.with_name(path.name + ".png"), dpi=150)
    plt.close(figure)
