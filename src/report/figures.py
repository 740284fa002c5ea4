"""What the figures share: labels, colors, the range of the error axis, legends and files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib

matplotlib.use("Agg")  # draws into files, with no display
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.legend_handler import HandlerTuple

from src.report.colors import family_color
from src.report.grouping import group_by
from src.report.labels import join, variant_labels
from src.report.results import Run

MARKERS = "osD^vP"
LETTERS_PER_INCH = 13  # of a legend's text
HIGH_ERROR = 60.0  # percent

plt.style.use(Path(__file__).with_name("figures.mplstyle"))


class Style(NamedTuple):
    """How the runs of one net are drawn; `order` is that of their depth in the figure.

    `label` is such as `20 layers, shortcut B`, and may be that of a net in each family. `color` is
    one of `family_color`.
    """

    order: int
    label: str
    color: str
    dashes: str = "solid"

    def look(self, distance: float) -> dict[str, Any]:
        """Return arguments of `plot` for its line, with markers at equal distances on paper.

        Args:
            distance: From marker to marker, as a part of the diagonal of the axes.
        """
        # Each style starts at a place of its own, so that markers of close curves stay apart.
        places = (0.03 * (self.order % 6), distance)
        marker = MARKERS[self.order % len(MARKERS)]
        line = {"color": self.color, "linestyle": self.dashes}
        return line | {"marker": marker, "markevery": places}


def styles(runs: Sequence[Run], keys: str = ".*") -> list[Style]:
    """Return a style for each run: one hue for each family, one shade and marker for each depth.

    A depth has several styles if its runs differ in more than net and seed.

    Args:
        runs: The runs.
        keys: A regular expression for the flat keys that such runs may differ in.
    """
    # Sorted by depth, so that the n-th shade is the n-th depth, whichever family has it. By rank:
    # by value, 20 and 110 layers would look alike where 1202 are drawn.
    depths = [run.row["depth"] for run in runs]
    names = [run.net for run in runs]
    labels = variant_labels([run.config for run in runs], names, keys)
    kinds = list(zip(depths, labels, strict=True))
    order = {kind: i for i, kind in enumerate(sorted(set(kinds)))}
    deepest = max(1, len(order) - 1)
    return [
        Style(
            order[kind],
            join(f"{kind[0]} layers" if kind[0] else run.net, kind[1]),
            family_color(run.row["family"], order[kind] / deepest),
        )
        for run, kind in zip(runs, kinds, strict=True)
    ]


def net_labels(runs: Sequence[Run]) -> list[str]:
    """Name each run's net such that it differs from the others: `plain-20, bf16-mixed`."""
    labels = variant_labels([run.config for run in runs], [run.net for run in runs])
    return [join(run.net, label) for run, label in zip(runs, labels, strict=True)]


def error_limit(runs: Sequence[Run]) -> float:
    """Return the upper end of an error axis in percent: it fits the second half of each curve.

    As in Fig. 6, nets with more than 60% may be cut off: if the others then need less than half
    of the axis, and at least three nets of each such family remain.
    """
    # Runs without a curve count as 0, and so neither as high nor as remaining.
    nets = [(run.row["family"], run.row["depth"], _late_maximum(run)) for run in runs]
    highest = max((error for *_, error in nets), default=0)
    low = max((error for *_, error in nets if error <= HIGH_ERROR), default=0)
    remaining = {(family, depth) for family, depth, error in nets if 0 < error <= HIGH_ERROR}
    cut = {family for family, _, error in nets if error > HIGH_ERROR}
    if 2 * low < highest and all(sum(f == family for f, _ in remaining) >= 3 for family in cut):
        highest = low
    # 100% also where nothing is to be drawn yet.
    return 1.1 * highest + 0.5 if 0 < highest <= HIGH_ERROR else 100.0


def _late_maximum(run: Run) -> float:
    """Return the highest error in the second half of a run's curves; 0 if it has none."""
    curves = [run.curve("train/error"), run.curve(f"{run.held_out}/error")]
    # The first half is left out: there all nets start at 90%.
    return max((error for curve in curves for _, error in curve[len(curve) // 2 :]), default=0.0)


def new_figure(
    rows: int, columns: int, width: float = 4.2, share_axes: Literal["row"] | bool = False
) -> tuple[plt.Figure, np.ndarray]:
    """Make a figure of axes with a grid.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Of each axes, in inches.
        share_axes: Whether all axes have one range, or those of each row.

    Returns:
        The figure, and its axes of shape [rows, columns].
    """
    size = (width * columns, 3.2 * rows + 0.3)
    return plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharex=share_axes, sharey=share_axes
    )


def add_legend(figure: plt.Figure, lines: dict[Style, plt.Line2D], title: str) -> None:
    """Add a legend below the axes, which makes the figure higher by its rows, and wide enough.

    Args:
        figure: The figure.
        lines: A line that is drawn in each style. Nets of one label, such as those of one depth
            in several families, share an entry.
        title: Above the entries.
    """
    # Sorting keeps the order of the families within an entry.
    ordered = sorted(lines, key=lambda style: (style.order, style.label))
    entries = group_by(ordered, lambda style: (style.order, style.label))
    labels = [verbatim(label) for _, label in entries]
    # matplotlib does not wrap a legend's columns: they are what fits the width.
    longest = max(map(len, labels)) + 8  # 8 for the line and the gap
    columns = int(figure.get_figwidth() * LETTERS_PER_INCH / longest)
    columns = max(1, min(len(labels), columns))
    # Wider axes rather than a label or title that ends at the edge.
    widest = max(longest, len(title)) / LETTERS_PER_INCH
    figure.set_figwidth(max(figure.get_figwidth(), widest))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(labels) / columns))
    # Any, because matplotlib's type hints do not know of tuples, which are drawn side by side.
    handles: list[Any] = [tuple(lines[style] for style in entry) for entry in entries.values()]
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        title=verbatim(title),
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def verbatim(text: str) -> str:
    """Return a text that matplotlib draws as it is: between dollar signs it would read formulas."""
    return text.replace("$", r"\$")


def save_figure(figure: plt.Figure, path: Path) -> Path:
    """Write a figure to `path`.svg and `path`.png, close it, and return the SVG file."""
    # Not with_suffix, which would cut a name like resnet20-lr0.1. Without a date, the SVG file of
    # the same figure is the same.
    svg = path.with_name(f"{path.name}.svg")
    figure.savefig(svg, metadata={"Date": None})
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
    plt.close(figure)
    return svg
