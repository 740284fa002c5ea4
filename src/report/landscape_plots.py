"""Draw loss landscapes; see src/evaluation/landscape.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, MultipleLocator

from src.evaluation.landscape_points import LandscapePoints, plane_points, profile_points, steps
from src.report.colors import family_color
from src.report.figures import MARKERS, new_figure, plt, save_figure

__all__ = ["draw_planes", "draw_profile", "save_figure"]

# Of both ends of the loss scale: less is a perfect fit, and a net that gives all its score to wrong
# classes reaches any height without being worse than chance.
LOWEST, HIGHEST = 1e-3, 1e3
LEVELS_PER_DECADE = 5
COLORS = "viridis"


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
        axis.set_xlabel("alpha: steps along a random direction")
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
    losses = [plane(landscape, grid, limit) for landscape in landscapes]
    levels = loss_levels(losses)
    norm = LogNorm(levels[0], levels[-1])

    count = len(landscapes)
    figure = plt.figure(figsize=(3.2 * count + 0.8, 6.4))
    contours = [figure.add_subplot(2, count, 1 + i) for i in range(count)]
    surfaces = [figure.add_subplot(2, count, 1 + count + i, projection="3d") for i in range(count)]
    for landscape, loss, contour, surface in zip(
        landscapes, losses, contours, surfaces, strict=True
    ):
        clipped = np.clip(loss, levels[0], levels[-1])
        filled = contour.contourf(values, values, clipped, levels, norm=norm, cmap=COLORS)
        contour.contour(values, values, clipped, levels, colors="white", linewidths=0.3)
        contour.plot(0, 0, "+", color="red")
        contour.set(title=landscape.name, xlabel="alpha", ylabel="beta", aspect="equal")
        contour.grid(False)
        _draw_surface(surface, values, clipped, levels)
    bar = figure.colorbar(filled, ax=contours, label="loss", ticks=LogLocator())
    bar.ax.yaxis.set_major_formatter(LogFormatterSciNotation())
    return figure


def plane(landscape: LandscapePoints, grid: int, limit: float) -> np.ndarray:
    """Return the losses in the plane, float64 [beta, alpha]."""
    losses = [landscape.measured[point].loss for point in plane_points(grid, limit)]
    # A loss that is not a number comes from scores that overflow, where it is as high as can be.
    return np.nan_to_num(np.reshape(losses, (grid, grid)), nan=np.inf, posinf=np.inf)


def loss_levels(losses: Sequence[np.ndarray]) -> np.ndarray:
    """Return the levels of the contours: an equal factor apart, several in each decade."""
    low = max(LOWEST, min(loss.min() for loss in losses))
    high = min(HIGHEST, max(loss.max() for loss in losses))
    # At least a decade, so that rounding does not fill the figure of a loss that hardly changes.
    low, decades = min(low, high / 10), max(1.0, np.log10(high / low))
    return np.geomspace(low, max(high, 10 * low), round(LEVELS_PER_DECADE * decades) + 1)


def _draw_surface(axes: Any, values: Sequence[float], loss: np.ndarray, levels: np.ndarray) -> None:
    """Draw the surface of a loss over the plane on the axis of the levels; `axes` are 3D."""
    # matplotlib has no logarithmic scale in three dimensions: the logarithms are drawn, and the
    # ticks say what they stand for.
    axes.plot_surface(
        *np.meshgrid(values, values),
        np.log10(loss),
        facecolors=plt.get_cmap(COLORS)(LogNorm(levels[0], levels[-1])(loss)),
        rcount=len(values),
        ccount=len(values),
        linewidth=0,
        antialiased=True,
        shade=False,
    )
    axes.set(xlabel="alpha", ylabel="beta", zlabel="loss")
    axes.set_zlim(*np.log10(levels[[0, -1]]))
    axes.zaxis.set_major_locator(MultipleLocator(1))
    axes.zaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:g}}}$"))
    axes.view_init(elev=30, azim=-60)
