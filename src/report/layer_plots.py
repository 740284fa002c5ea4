"""Draw measurements of single layers: their responses (Fig. 7) and gradients (Sec. 4.1)."""

from collections.abc import Iterator, Sequence
from statistics import mean, median

from matplotlib.ticker import MaxNLocator

from src.report.figures import Style, add_legend, net_labels, new_figure, plt, styles
from src.report.grouping import group_by
from src.report.results import Metrics, Run

LOG_SCALE_FROM = 30  # times the median response
LEGEND_TITLE = "at the last evaluation"


def draw_responses(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw the std of the 3x3 layers' responses, in layer order and sorted by size (Fig. 7).

    Args:
        runs: Runs on one data set, in any state.

    Returns:
        The figure, or None if no run has any responses.
    """
    nets = {
        style: by_layer([run.layers for run in seeds], "response")
        for style, seeds in _group(runs, "response")
    }
    if not nets:
        return None
    figure, axes = new_figure(2, 1, width=7.5, share_axes=True)
    # Fig. 7 shows both: the order of the layers on top, and sorted by size below.
    in_order, by_size = axes[:, 0]
    lines = _draw(in_order, nets)
    _draw(by_size, {style: sorted(values, reverse=True) for style, values in nets.items()})
    in_order.set(title="responses of the 3x3 layers", xlabel="layer", ylabel="std")
    by_size.set(xlabel="layer, sorted by size", ylabel="std")

    responses = [value for values in nets.values() for value in values]
    # On a linear scale a net that did not train would flatten the others.
    if max(responses) > LOG_SCALE_FROM * median(responses):
        in_order.set_yscale("log")
    else:
        in_order.set_ylim(0, None)
    add_legend(figure, lines, LEGEND_TITLE)
    return figure


def draw_gradients(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw |g| |w| of each layer, at the first iteration and at the last evaluation.

    The norm of the gradient alone shrinks as that of the weights grows, because of batch norm, so
    it cannot be compared between layers. See `draw_responses`.
    """
    at_first, at_last = {}, {}
    for style, seeds in _group(runs, "scaled_gradient"):
        at_first[style] = by_layer([run.first_layers for run in seeds], "scaled_gradient")
        at_last[style] = by_layer([run.layers for run in seeds], "scaled_gradient")
    if not at_last:
        return None
    figure, axes = new_figure(2, 1, width=7.5, share_axes=True)
    first, last = axes[:, 0]
    _draw(first, at_first)
    lines = _draw(last, at_last)
    first.set(title="gradients at the first iteration", ylabel="|g| |w|")
    last.set(title="gradients at the last evaluation", xlabel="layer", ylabel="|g| |w|")
    first.set_yscale("log")  # they differ by orders of magnitude; the axes are shared
    add_legend(figure, lines, "norm of the gradient times norm of the weights")
    return figure


def _group(runs: Sequence[Run], column: str) -> Iterator[tuple[Style, list[Run]]]:
    """Yield for each net that has values of a column its style and its seeds.

    Only the seeds that have come furthest count: values of different iterations do not mix.
    """
    looks = zip(runs, net_labels(runs), (style.color for style in styles(runs)), strict=True)
    having = [look for look in looks if any(column in row for row in look[0].layers)]
    groups = group_by(having, lambda look: look[0].row["config"]).values()
    for order, seeds in enumerate(groups):
        run, label, color = seeds[0]
        furthest = max(run.layers[0]["iteration"] for run, *_ in seeds)
        if (column, run.row["family"]) == ("response", "preactivation"):
            label += ", before batch norm"  # none of its own follows a layer; see layer_stats.py
        if furthest < run.row["iterations"]:
            label += f" at {furthest:,.0f} of {run.row['iterations']:,} iterations"
        dashes = "dashed" if run.row["family"] == "plain" else "solid"
        compared = [run for run, *_ in seeds if run.layers[0]["iteration"] == furthest]
        yield Style(order, label, color, dashes), compared


def by_layer(seeds: Sequence[Metrics], column: str) -> list[float]:
    """Average the values of each layer, from the first to the last, over the seeds of a net."""
    # The responses of layers that are no 3x3 convolutions have empty cells.
    by_seed = [[row[column] for row in rows if column in row] for rows in seeds]
    return [mean(values) for values in zip(*by_seed, strict=True)]


def _draw(axis: plt.Axes, nets: dict[Style, list[float]]) -> dict[Style, plt.Line2D]:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # layers
    lines = {}
    for style, values in nets.items():
        layers = range(1, len(values) + 1)
        (lines[style],) = axis.plot(layers, values, linewidth=1.3, **style.look(0.12))
    return lines
