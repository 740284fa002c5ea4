"""Draw what detectors reach: average precision over the iterations, and precision by recall."""

from collections.abc import Sequence
from statistics import mean

from src.report.comparison import group_by
from src.report.curves import mean_curve
from src.report.figures import Style, add_legend, net_labels, new_figure, plt, styles
from src.report.results import Run
from src.tables import read_csv


def draw_precision(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw AP over the iterations, and precision over recall at an IoU of 0.5.

    Both are means over the seeds, of precision also over the classes.

    Args:
        runs: Runs of detection on one data set, in any state.

    Returns:
        The figure, or None if no run has been evaluated yet.
    """
    drawn = [(run, s) for run, s in zip(runs, styles(runs), strict=True) if _ap_curve(run)]
    if not drawn:
        return None
    figure, ((by_iteration, by_recall),) = new_figure(1, 2)
    labels = dict(zip(map(id, runs), net_labels(runs), strict=True))
    lines: dict[Style, plt.Line2D] = {}
    for pairs in group_by(drawn, lambda pair: pair[0].row["config"]).values():
        seeds = [run for run, _ in pairs]
        # Both families are in the same axes.
        style = pairs[0][1]._replace(label=labels[id(seeds[0])])
        curve = mean_curve(seeds, [_ap_curve(run) for run in seeds])
        (lines[style],) = by_iteration.plot(*curve, **style.look(0.18), linewidth=1.9)
        finished = [_recall_curve(run) for run in seeds if run.finished]
        if finished:
            precision = [mean(values) for values in zip(*finished, strict=True)]
            by_recall.plot(range(101), precision, color=style.color, linewidth=1.9)
    by_iteration.set(xlabel="iterations", ylabel="AP (%)", ylim=(0, None), xlim=(0, None))
    by_recall.set(xlabel="recall (%)", ylabel="precision (%)", ylim=(0, 102), xlim=(0, 100))
    by_iteration.set_title("average precision")
    by_recall.set_title("precision by recall at an IoU of 0.5")
    add_legend(figure, lines, "test AP" if drawn[0][0].held_out == "test" else "validation AP")
    return figure


def _ap_curve(run: Run) -> list[tuple[float, float]]:
    return run.curve(f"{run.held_out}/ap")


def _recall_curve(run: Run) -> list[float]:
    """Return the mean over the classes of the precision at each recall."""
    rows = read_csv(run.path / "precision_recall.csv")
    return [mean(value for key, value in row.items() if key != "recall") for row in rows]
