"""Draw the signals of untrained nets, and how these nets then train (Sec. 1 and 4.1)."""

import math
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from src.report.curves import mean_curve
from src.report.figures import Style, add_legend, new_figure, plt, styles
from src.report.grouping import group_by
from src.report.layer_plots import by_layer
from src.report.results import Run

SIGNALS = {"forward_std": "std of responses", "backward_std": "std of their gradients"}
NORM = r"model\.norm"  # has axes of its own, and so no label


def draw_signals(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw the std of signals and gradients by layer at the first iteration, and training errors.

    There is a column of axes for each family of nets and each normalization.

    Args:
        runs: Runs on one data set, in any state.

    Returns:
        The figure, or None if no run has measured its first signals.
    """
    runs = [run for run in runs if any("forward_std" in row for row in run.first_layers)]
    if not runs:
        return None
    # The same marker in all columns: it stands for what distinguishes the nets of one column.
    looks = zip(runs, styles(runs, keys=rf"(?!{NORM}$).*"), strict=True)
    columns = group_by(looks, lambda pair: _title(pair[0]))
    figure, axes = new_figure(len(SIGNALS) + 1, len(columns), width=3.4, share_axes="row")
    lines: dict[Style, plt.Line2D] = {}
    for (title, members), column in zip(columns.items(), axes.T, strict=True):
        for nets in group_by(members, lambda pair: pair[0].row["config"]).values():
            seeds, style = [run for run, _ in nets], nets[0][1]
            for axis, signal in zip(column, SIGNALS, strict=False):
                stds = by_layer([run.first_layers for run in seeds], signal)
                axis.plot(range(1, len(stds) + 1), stds, linewidth=1.3, **style.look(0.15))
            errors = mean_curve(seeds, [run.curve("train/error") for run in seeds])
            (lines[style],) = column[-1].plot(*errors, linewidth=1.3, **style.look(0.15))
        column[0].set(title=title, xlabel="layer")
        column[1].set(xlabel="layer")
        column[-1].set(xlabel="iterations")
    for axis, label in zip(axes[:, 0], (*SIGNALS.values(), "training error (%)"), strict=True):
        axis.set_ylabel(label)
    for axis in axes[:-1, 0]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # layers
        axis.set_yscale("log")  # signals change by a factor from layer to layer
        # A decade at least: batch norm makes all responses 1, and rounding must not fill the panel.
        low, high = axis.get_ylim()
        middle = math.sqrt(low * high)
        axis.set_ylim(min(low, middle / math.sqrt(10)), max(high, middle * math.sqrt(10)))
    axes[-1, 0].set_ylim(0, 100)
    add_legend(figure, lines, "first iteration, before any update; training error below")
    return figure


def _title(run: Run) -> str:
    norm = run.config["model"].get("norm", "batch")
    return f"{run.row['family']} nets, {'no' if norm == 'none' else norm} norm"
