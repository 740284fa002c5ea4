"""Draw what detectors and segmenters reach over the iterations, and precision by recall."""

from collections.abc import Mapping, Sequence
from statistics import mean

from src.report.curves import mean_curve
from src.report.figures import Style, add_legend, net_labels, new_figure, plt, styles
from src.report.grouping import group_by
from src.report.results import Run
from src.tables import read_csv


def draw_metric(runs: Sequence[Run], metric: str, title: str) -> plt.Figure | None:
    """Draw a metric of runs over the iterations, as `draw_precision` does AP."""
    drawn = _evaluated(runs, metric)
    if not drawn:
        return None
    figure, ((axes,),) = new_figure(1, 1, width=6)
    lines = _draw_means(axes, drawn, metric)
    axes.set(xlabel="iterations", ylabel=f"{title} (%)", ylim=(0, None), xlim=(0, None))
    _add_legend(figure, lines, drawn, title)
    return figure


def draw_precision(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw AP over the iterations, and precision over recall at an IoU of 0.5.

    Both are means over the seeds, of precision also over the classes.

    Args:
        runs: Runs of detection on one data set, in any state.

    Returns:
        The figure, or None if no run has been evaluated yet.
    """
    drawn = _evaluated(runs, "ap")
    if not drawn:
        return None
    figure, ((by_iteration, by_recall),) = new_figure(1, 2)
    lines = _draw_means(by_iteration, drawn, "ap")
    for style, seeds in drawn.items():
        finished = [_recall_curve(run) for run in seeds if run.finished]
        if finished:
            precision = [mean(values) for values in zip(*finished, strict=True)]
            by_recall.plot(range(101), precision, color=style.color, linewidth=1.9)
    by_iteration.set(xlabel="iterations", ylabel="AP (%)", ylim=(0, None), xlim=(0, None))
    by_recall.set(xlabel="recall (%)", ylabel="precision (%)", ylim=(0, 102), xlim=(0, 100))
    by_iteration.set_title("average precision")
    by_recall.set_title("precision by recall at an IoU of 0.5")
    _add_legend(figure, lines, drawn, "AP")
    return figure


def _evaluated(runs: Sequence[Run], metric: str) -> dict[Style, list[Run]]:
    """Return the runs that have been evaluated, the seeds of each net by their style."""
    # Both families are in the same axes, so the label is of the net, not of its depth.
    labels = zip(styles(runs), net_labels(runs), strict=True)
    named = [style._replace(label=label) for style, label in labels]
    pairs = [(r, s) for r, s in zip(runs, named, strict=True) if _curve(r, metric)]
    groups = group_by(pairs, lambda pair: pair[0].row["config"]).values()
    return {group[0][1]: [run for run, _ in group] for group in groups}


def _draw_means(
    axes: plt.Axes, drawn: Mapping[Style, Sequence[Run]], metric: str
) -> dict[Style, plt.Line2D]:
    """Draw the mean of a metric over the seeds of each net, and return the lines."""
    lines = {}
    for style, seeds in drawn.items():
        curve = mean_curve(seeds, [_curve(run, metric) for run in seeds])
        (lines[style],) = axes.plot(*curve, **style.look(0.18), linewidth=1.9)
    return lines


def _add_legend(
    figure: plt.Figure,
    lines: dict[Style, plt.Line2D],
    drawn: Mapping[Style, Sequence[Run]],
    metric: str,
) -> None:
    run = next(iter(drawn.values()))[0]
    add_legend(figure, lines, f"{'test' if run.held_out == 'test' else 'validation'} {metric}")


def _curve(run: Run, metric: str) -> list[tuple[float, float]]:
    return run.curve(f"{run.held_out}/{metric}")


def _recall_curve(run: Run) -> list[float]:
    """Return the mean over the classes of the precision at each recall."""
    rows = read_csv(run.path / "precision_recall.csv")
    return [mean(value for key, value in row.items() if key != "recall") for row in rows]
