"""Draw what the layers did at the last evaluation: responses (Fig. 7) and gradient norms."""

from collections.abc import Sequence
from statistics import mean, median

from src.report.comparison import group_by
from src.report.figures import Style, add_legend, net_labels, new_figure, plt
from src.report.results import Run

LOG_SCALE_FROM = 30  # times the median response
LEGEND_TITLE = "at the last evaluation"


def draw_responses(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw the std of the 3x3 layers' responses, in layer order and sorted by size (Fig. 7).

    Args:
        runs: Runs on one data set, in any state.

    Returns:
        The figure, or None if no run has any responses.
    """
    nets = _read_nets(runs, "response")
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
    """Draw the L2 norm of the gradient of each layer's weights; see `draw_responses`."""
    nets = _read_nets(runs, "gradient")
    if not nets:
        return None
    figure, [[axis]] = new_figure(1, 1, width=7.5)
    lines = _draw(axis, nets)
    axis.set(title="gradients of the layers' weights", xlabel="layer", ylabel="L2 norm")
    axis.set_yscale("log")  # norms differ by orders of magnitude between layers
    add_legend(figure, lines, LEGEND_TITLE)
    return figure


def _read_nets(runs: Sequence[Run], column: str) -> dict[Style, list[float]]:
    """Average the layers' values of each net, from the first layer to the last, over its seeds.

    Only the seeds that have come furthest count: values of different iterations do not mix.
    """
    pairs = zip(runs, net_labels(runs), strict=True)
    having = [(run, label) for run, label in pairs if any(column in row for row in run.layers)]
    nets: dict[Style, list[float]] = {}
    for seeds in group_by(having, lambda pair: pair[0].row["config"]).values():
        run, label = seeds[0]
        furthest = max(run.layers[0]["iteration"] for run, _ in seeds)
        if (column, run.row["family"]) == ("response", "preactivation"):
            label += ", before batch norm"  # none of its own follows a layer; see layer_stats.py
        if furthest < run.row["iterations"]:
            label += f" at {furthest:,.0f} of {run.row['iterations']:,} iterations"
        # The responses of layers that are no 3x3 convolutions have empty cells.
        by_seed = [
            [row[column] for row in run.layers if column in row]
            for run, _ in seeds
            if run.layers[0]["iteration"] == furthest
        ]
        dashes = "dashed" if run.row["family"] == "plain" else "solid"
        style = Style(len(nets), label, dashes)
        nets[style] = [mean(by_layer) for by_layer in zip(*by_seed, strict=True)]
    return nets


def _draw(axis: plt.Axes, nets: dict[Style, list[float]]) -> dict[Style, plt.Line2D]:
    lines = {}
    for style, values in nets.items():
        layers = range(1, len(values) + 1)
        (lines[style],) = axis.plot(layers, values, linewidth=1.3, **style.look(0.12))
    return lines
