"""Draw what single choices are worth; see departures.py."""

from collections.abc import Sequence

from src.report.colors import family_color
from src.report.departures import departure_rows, interval, net_and_length
from src.report.figures import new_figure, plt, verbatim
from src.report.grouping import group_by
from src.report.results import Run

HEIGHT = 0.32  # of a line, in inches


def draw_departures(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw the difference of each way of training from the baseline, with its 95% interval.

    Args:
        runs: Runs on one data set, as for `departure_rows`.

    Returns:
        The figure with axes for each net and length, or None if there is nothing to compare.
    """
    by_baseline = group_by(departure_rows(runs), net_and_length)
    if not by_baseline:
        return None
    figure, axes = new_figure(len(by_baseline), 1, width=7.5)
    longest = max(map(len, by_baseline.values()))
    figure.set_figheight(len(by_baseline) * (HEIGHT * longest + 1.1))
    for axis, (start, rows) in zip(axes[:, 0], by_baseline.items(), strict=True):
        net, iterations = start
        color = family_color(net.rpartition("-")[0])
        for place, row in enumerate(rows):
            if bounds := interval(row):
                axis.plot(bounds, (place, place), color=color, linewidth=1.3)
            axis.plot(row["difference"], place, "o", color=color)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(rows)), [verbatim(row["change"]) for row in rows])
        axis.invert_yaxis()  # the first row on top, as in the table
        seeds = {row[key] for row in rows for key in ("seeds", "baseline_seeds")}
        axis.set(
            title=f"{net}, {iterations:,} iterations, at least {min(seeds)} seeds each",
            xlabel="test error minus the baseline's (points), with 95% intervals",
        )
    return figure
