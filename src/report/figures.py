"""What the figures share: their size, their legend, their files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from src.report.style import Style


def new_figure(rows: int, columns: int, width: float = 4.2, **options: Any) -> tuple[plt.Figure, np.ndarray]:
    """A figure and its axes, [rows, columns], each `width` inches wide; its file is the same to the byte each time."""
    plt.rcParams.update({"svg.hashsalt": "", "svg.fonttype": "none", "font.size": 9})
    size = (width * columns, 3.2 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for axis in axes.flat:
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(figure: plt.Figure, entries: Iterable[tuple[Style, dict[str, Any]]], title: str) -> None:
    """Below the axes, one entry for each style, however many runs are drawn in it."""
    once = dict(sorted(entries, key=lambda entry: entry[0]))
    lines = [plt.Line2D([], [], color=style.color, marker=style.marker, **look) for style, look in once.items()]
    names = [style.label for style in once]
    # As many columns as the longest name leaves room for, at about 13 letters an inch.
    columns = int(figure.get_figwidth() * 13 / (max(map(len, names)) + 8))
    columns = max(1, min(len(names), columns))
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(names) // columns))
    place = {"loc": "outside lower center", "ncols": columns}
    figure.legend(lines, names, title=title, frameon=False, **place)


def save(figure: plt.Figure, path: Path) -> None:
    """Writes `path`.svg and `path`.png."""
    figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})
    figure.savefig(path.with_name(path.name + ".png"), dpi=150)
    plt.close(figure)
