"""Draw error curves as in Fig. 6: training dashed, test bold, one shade per depth."""

import math
from collections.abc import Sequence
from statistics import mean

from matplotlib.ticker import MaxNLocator

from src.report.figures import Style, add_legend, error_limit, new_figure, plt, styles
from src.report.grouping import group_by
from src.report.results import Curve, Run

AXES_PER_ROW = 3
INTERVALS = 4  # at most, between the ticks: labels such as 16,000 are wide
END_MARKERS = {"unfinished": (">", "▷"), "failed": ("X", "✕")}  # in the axes, in the legend


def draw_curves(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw one axes for each family of nets, with a common scale.

    Runs are drawn as far as they have come. Of several seeds the mean is bold, each seed thin.

    Args:
        runs: Runs on one data set, in any state.

    Returns:
        The figure, or None if no run has been evaluated yet.
    """
    # Styles are those of all runs: a depth has its color also before its first evaluation.
    drawn = [pair for pair in zip(runs, styles(runs), strict=True) if pair[0].held_out_curve]
    if not drawn:
        return None
    runs = [run for run, _ in drawn]
    limit = error_limit(runs)

    # One axes for each family, as in Fig. 6, which has the plain nets on its left.
    families = group_by(drawn, lambda pair: pair[0].row["family"])
    columns = min(AXES_PER_ROW, len(families))
    rows = math.ceil(len(families) / columns)
    figure, axes = new_figure(rows, columns, share_axes=True)
    lines: dict[Style, plt.Line2D] = {}
    for axis, (family, members) in zip(axes.flat, families.items(), strict=False):
        for seeds in group_by(members, lambda pair: pair[0].row["config"]).values():
            style = seeds[0][1]
            lines[style] = _draw_seeds(axis, [run for run, _ in seeds], style)
        axis.set(title=f"{family} nets", xlabel="iterations")
        # Shared axes have labels in the last row only, which may end before this column.
        axis.xaxis.set_tick_params(labelbottom=True)
    for axis in axes.flat[len(families) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("error (%)")
    axes[0, 0].set(xlim=(0, max(run.row["iterations"] for run in runs)), ylim=(0, limit))
    axes[0, 0].xaxis.set_major_formatter("{x:,.0f}")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(INTERVALS))
    add_legend(figure, lines, _legend_title(runs, limit))
    return figure


def _draw_seeds(axis: plt.Axes, seeds: Sequence[Run], style: Style) -> plt.Line2D:
    """Draw runs that differ only in the seed, and return the bold line."""
    training = [run.curve("train/error") for run in seeds]
    held_out = [run.held_out_curve for run in seeds]
    color = style.color
    axis.plot(*mean_curve(seeds, training), color=color, linestyle="dashed", linewidth=1)
    if len(seeds) > 1:  # a single one would lie under the bold line
        for curve in held_out:
            axis.plot(*zip(*curve, strict=True), color=color, linewidth=0.5)

    (bold,) = axis.plot(*mean_curve(seeds, held_out), **style.look(0.18), linewidth=1.9)
    if len(held_out[0]) <= 2:  # too short for distances on paper: mark every point
        bold.set_markevery(None)
    for run, curve in zip(seeds, held_out, strict=True):
        if run.state in END_MARKERS:
            marker = END_MARKERS[run.state][0]
            axis.plot(*curve[-1], marker, color=color, mfc="white", markersize=7, zorder=3)
    return bold


def mean_curve(seeds: Sequence[Run], curves: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Return iterations and mean errors over the finished seeds; if there are none, over all.

    Only iterations that all these seeds have count, so that the mean is nowhere over fewer.
    """
    finished = [curve for run, curve in zip(seeds, curves, strict=True) if run.finished]
    by_iteration = [dict(curve) for curve in finished or curves]
    shared = [i for i in by_iteration[0] if all(i in errors for errors in by_iteration)]
    return shared, [mean(errors[i] for errors in by_iteration) for i in shared]


def _legend_title(runs: Sequence[Run], limit: float) -> str:
    splits = sorted({"validation" if run.held_out == "val" else "test" for run in runs})
    parts = [f"bold: {' or '.join(splits)}", "dashed: training"]
    if len({run.row["config"] for run in runs}) < len(runs):
        parts.append("thin: single seeds")
    states = {run.state for run in runs}
    parts += [f"{sign} {state}" for state, (_, sign) in END_MARKERS.items() if state in states]
    # By the last value: the curves of all nets start above the limit.
    cut = dict.fromkeys(run.net for run in runs if run.held_out_curve[-1][1] > limit)
    if cut:
        parts.append(f"above {limit:.0f}%: {' and '.join(cut)}")
    return ", ".join(parts)
