"""Draw loss landscapes; see src/evaluation/loss_plane.py."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MultipleLocator

from src.evaluation.landscape_points import LandscapePoints, plane_points, profile_points, steps
from src.report.colors import family_color
from src.report.figures import MARKERS, new_figure, plt

# Of both ends of the loss scale: less is a perfect fit, and a net that gives all its score to wrong
# classes reaches any height without being worse than chance.
LOWEST, HIGHEST = 1e-3, 1e3
LEVELS_PER_DECADE = 5
COLORS = "viridis"
# Solid: matplotlib dashes the contours of negative values, which are losses below 1 here.
LINES: dict[str, Any] = {"colors": "white", "linewidths": 0.4, "linestyles": "solid"}


def draw_profile(landscapes: Sequence[LandscapePoints], grid: int, limit: float) -> plt.Figure:
    """Draw loss and error along the first direction, a line for each run."""
    points = profile_points(grid, limit)
    figure, [axes] = new_figure(1, 2)
    for order, (landscape, color) in enumerate(zip(landscapes, _colors(landscapes), strict=True)):
        measured = [landscape.measured[point] for point in points]
        for axis, values in zip(axes, zip(*measured, strict=True), strict=True):
            axis.plot(
                [alpha for alpha, _ in points],
                values,
                color=color,
                label=landscape.name,
                marker=MARKERS[order % len(MARKERS)],
                markevery=max(1, len(points) // 12),
            )
    axes[0].set(ylabel="loss", yscale="log")
    axes[1].set(ylabel="error (%)", ylim=(0, 100))
    for axis in axes:
        axis.set(xlabel="alpha", xticks=steps(5, limit))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _colors(landscapes: Sequence[LandscapePoints]) -> list[str]:
    """Return the color of each run: the hue of its family, a shade of its own among them."""
    families = [landscape.family for landscape in landscapes]
    return [
        family_color(family, (0.5 + families[:i].count(family)) / families.count(family))
        for i, family in enumerate(families)
    ]


def draw_planes(landscapes: Sequence[LandscapePoints], grid: int, limit: float) -> plt.Figure:
    """Draw contours and, below them, surfaces of the loss, all on one logarithmic scale."""
    values = steps(grid, limit)
    planes = [log_losses(landscape, grid, limit) for landscape in landscapes]
    levels = contour_levels(planes)
    low, high = levels[[0, -1]]
    planes = [np.clip(plane, low, high) for plane in planes]

    # Few, because those of the three axes of a surface are close to each other.
    ticks = {"xticks": (-limit, 0, limit), "yticks": (-limit, 0, limit)}
    count = len(landscapes)
    figure = plt.figure(figsize=(3.4 * count + 0.8, 6.6))
    contours = [figure.add_subplot(2, count, 1 + i) for i in range(count)]
    surfaces = [figure.add_subplot(2, count, 1 + count + i, projection="3d") for i in range(count)]
    for landscape, plane, axis in zip(landscapes, planes, contours, strict=True):
        filled = axis.contourf(values, values, plane, levels, cmap=COLORS)
        axis.contour(values, values, plane, levels, **LINES)
        axis.plot(0, 0, "+", color="red")  # the net itself
        axis.set(title=landscape.name, xlabel="alpha", ylabel="beta", aspect="equal", **ticks)
        axis.grid(False)
    capped = high >= math.log10(HIGHEST)
    label = f"loss ({HIGHEST:,.0f} and more in one color)" if capped else "loss"
    bar = figure.colorbar(filled, ax=[*contours, *surfaces], label=label, aspect=40)
    _set_log_ticks(bar.ax.yaxis)

    for plane, axis in zip(planes, surfaces, strict=True):
        every = {"rcount": grid, "ccount": grid}  # matplotlib would leave out points of large grids
        shades = {"cmap": COLORS, "vmin": low, "vmax": high, "linewidth": 0.1, "edgecolor": "white"}
        axis.plot_surface(*np.meshgrid(values, values), plane, **every, **shades)
        axis.set(xlabel="alpha", ylabel="beta", zlim=(low, high), **ticks)
        axis.set_box_aspect((1, 1, 0.8), zoom=1.0)  # room for the labels
        _set_log_ticks(axis.zaxis)
    return figure


def log_losses(landscape: LandscapePoints, grid: int, limit: float) -> np.ndarray:
    """Return the decimal logarithms of the losses in the plane, float64 [beta, alpha]."""
    losses = [landscape.measured[point].loss for point in plane_points(grid, limit)]
    # A loss that is not a number comes from scores that overflow: it counts as the highest.
    plane = np.nan_to_num(np.reshape(losses, (grid, grid)), nan=HIGHEST, posinf=HIGHEST)
    return np.log10(plane.clip(LOWEST, HIGHEST))


def contour_levels(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Return the levels of the contours of all planes, equally far apart."""
    low = min(plane.min() for plane in planes)
    # A decade at least: a loss that hardly changes must not fill the figure.
    high = max(low + 1, *(plane.max() for plane in planes))
    return np.linspace(low, high, math.ceil(LEVELS_PER_DECADE * (high - low)) + 1)


def _set_log_ticks(axis: Any) -> None:
    """Label an axis of logarithms with what they stand for.

    matplotlib has no logarithmic scale in three dimensions, so the logarithms themselves are drawn.
    """
    axis.set_major_locator(MultipleLocator(1))
    axis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
