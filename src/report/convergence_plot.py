"""Draw how early nets converge, over the depth; see convergence.py."""

from collections.abc import Sequence
from math import nan
from statistics import mean

from src.report.colors import family_color
from src.report.comparison import DEPTH
from src.report.convergence import IN_A_ROW, THRESHOLDS, first_below
from src.report.figures import Style, add_legend, new_figure, plt
from src.report.grouping import group_by
from src.report.labels import join
from src.report.results import Run, group_runs


def draw_convergence(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw the iterations to each threshold over the depth, a line for each kind of net.

    Args:
        runs: Runs on one data set; only finished ones count.

    Returns:
        The figure, with axes for each threshold that one of the runs reaches; None if there are
        no two depths to compare or no such threshold.
    """
    finished = [run for run in runs if run.finished]
    kinds = group_runs(finished, ignore=DEPTH)
    reached = [t for t in THRESHOLDS if any(first_below(run, t) is not None for run in finished)]
    if len({run.row["depth"] for run in finished}) < 2 or not reached:
        return None
    figure, axes = new_figure(1, len(reached), width=3.4)
    lines: dict[Style, plt.Line2D] = {}
    families = [kind[0].row["family"] for _, kind in kinds]
    for order, (label, kind) in enumerate(kinds):
        family = families[order]
        # Each line has all depths, so the shade is free to tell the kinds of one family apart.
        shade = families[:order].count(family) / max(1, families.count(family) - 1)
        color = family_color(family, shade if families.count(family) > 1 else 0.5)
        dashes = "dashed" if family == "plain" else "solid"
        style = Style(order, join(family, label), color, dashes)
        for axis, threshold in zip(axes[0], reached, strict=True):
            points = _points(kind, threshold)
            # A depth of which no seed gets below the threshold interrupts the line.
            (lines[style],) = axis.plot(*zip(*points, strict=True), linewidth=1.3, **style.look(0))
            lines[style].set_markevery(None)
    for axis, threshold in zip(axes[0], reached, strict=True):
        axis.set(title=f"training error below {threshold}%", xlabel="layers", ylim=(0, None))
    axes[0, 0].set_ylabel("iterations")
    title = f"first of {IN_A_ROW} evaluations in a row; mean over the seeds that got there"
    add_legend(figure, lines, title)
    return figure


def _points(runs: Sequence[Run], threshold: float) -> list[tuple[int, float]]:
    points = []
    for depth, seeds in sorted(group_by(runs, lambda run: run.row["depth"]).items()):
        reached = [i for run in seeds if (i := first_below(run, threshold)) is not None]
        points.append((depth, mean(reached) if reached else nan))
    return points
