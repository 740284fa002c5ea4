"""Draw error curves as in Fig. 6: training dashed, test bold, one color per depth."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from src.report.comparison import group_by
from src.report.figures import Style, add_legend, error_limit, new_figure, plt, styles
from src.report.results import Run

AXES_PER_ROW = 3
BOLD = 1.9
END_MARKERS = {"unfinished": (">", "▷"), "failed": ("X", "✕")}  # in the axes, in the legend

Curve = list[tuple[float, float]]  # (iteration, error)


def draw_curves(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw one axes for each family of nets, with a common scale.

    Runs are drawn as far as they have come. Of several seeds the mean is bold, each seed thin.

    Args:
        runs: Runs on one data set, in any state.

    Returns:
        The figure, or None if no run has been evaluated yet.
    """
    pairs = list(zip(runs, styles(runs), strict=True))
    drawn = [(run, style) for run, style in pairs if run.curve(_held_out(run))]
    if not drawn:
        return None
    runs = [run for run, _ in drawn]
    limit = error_limit(runs)

    families = group_by(drawn, lambda pair: pair[0].row["family"])
    columns = min(AXES_PER_ROW, len(families))
    figure, axes = new_figure(math.ceil(len(families) / columns), columns, sharex=True, sharey=True)
    for axis, (family, members) in zip(axes.flat, families.items(), strict=False):
        for seeds in group_by(members, lambda pair: pair[0].row["config"]).values():
            _draw_seeds(axis, [run for run, _ in seeds], seeds[0][1])
        axis.set(title=f"{family} nets", xlabel="iterations")
        axis.xaxis.set_tick_params(labelbottom=True)
    for axis in axes.flat[len(families) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("error (%)")
    axes[0, 0].set(xlim=(0, max(run.row["iterations"] for run in runs)), ylim=(0, limit))
    axes[0, 0].xaxis.set_major_formatter("{x:,.0f}")

    look = {"linewidth": BOLD, "markersize": 4}
    add_legend(figure, [(style, look) for _, style in drawn], _legend_title(runs, limit))
    return figure


def _held_out(run: Run) -> str:
    return f"{run.held_out}/error"


def _draw_seeds(axis: plt.Axes, seeds: Sequence[Run], style: Style) -> None:
    training = [run.curve("train/error") for run in seeds]
    held_out = [run.curve(_held_out(run)) for run in seeds]
    color = style.color
    axis.plot(*_mean(seeds, training), color=color, linestyle="dashed", linewidth=1)
    if len(seeds) > 1:
        for curve in held_out:
            axis.plot(*zip(*curve, strict=True), color=color, linewidth=0.5)

    # Markers at equal distances on paper, each style's at places of its own.
    every = (0.03 * (style.order % 6), 0.18) if len(held_out[0]) > 2 else None
    marker: dict[str, Any] = {"marker": style.marker, "markersize": 4, "markevery": every}
    axis.plot(*_mean(seeds, held_out), color=color, linewidth=BOLD, **marker)

    for run, curve in zip(seeds, held_out, strict=True):
        if run.state in END_MARKERS:
            end: dict[str, Any] = {"marker": END_MARKERS[run.state][0], "markerfacecolor": "white"}
            axis.plot(*curve[-1], color=color, markersize=7, zorder=3, **end)


def _mean(seeds: Sequence[Run], curves: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Return iterations and mean errors over the finished seeds; if there are none, over all.

    Only iterations that all these seeds have count, so that the mean is nowhere over fewer.
    """
    finished = [c for run, c in zip(seeds, curves, strict=True) if run.state == "finished"]
    by_iteration = [dict(curve) for curve in finished or curves]
    shared = [i for i in by_iteration[0] if all(i in errors for errors in by_iteration)]
    return shared, [mean(errors[i] for errors in by_iteration) for i in shared]


def _legend_title(runs: Sequence[Run], limit: float) -> str:
    splits = sorted({"validation" if run.held_out == "val" else "test" for run in runs})
    parts = [f"bold: {' or '.join(splits)}", "dashed: training"]
    if any(len(seeds) > 1 for seeds in group_by(runs, lambda run: run.row["config"]).values()):
        parts.append("thin: single seeds")
    states = {run.state for run in runs}
    parts += [f"{sign} {state}" for state, (_, sign) in END_MARKERS.items() if state in states]
    cut = [run.row for run in runs if run.curve(_held_out(run))[-1][1] > limit]
    if cut:
        nets = dict.fromkeys(f"{row['family']}-{row['depth']}" for row in cut)
        parts.append(f"above {limit:.0f}%: {' and '.join(nets)}")
    return ", ".join(parts)
