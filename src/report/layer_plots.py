"""Draw what the layers did at the last evaluation: responses (Fig. 7) and gradient norms."""

from collections.abc import Sequence
from statistics import mean, median
from typing import Any, NamedTuple

from src.report.comparison import group_by
from src.report.figures import Style, add_legend, net_labels, new_figure, plt
from src.report.results import Run

LOG_SCALE_FROM = 30  # times the median response


class NetLayers(NamedTuple):
    """The values of one net's layers, from the first to the last, and how to draw them."""

    style: Style
    dashes: str
    values: list[float]


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
    figure, axes = new_figure(2, 1, width=7.5, sharex=True, sharey=True)
    in_order, by_size = axes[:, 0]
    _draw(in_order, nets)
    _draw(by_size, [net._replace(values=sorted(net.values, reverse=True)) for net in nets])

    responses = [value for net in nets for value in net.values]
    # On a linear scale a net that did not train would flatten the others.
    log = max(responses) > LOG_SCALE_FROM * median(responses)
    in_order.set(title="responses of the 3x3 layers", xlabel="layer", ylabel="std")
    in_order.set(**({"yscale": "log"} if log else {"ylim": (0, None)}))
    by_size.set(xlabel="layer, sorted by size", ylabel="std")
    _add_net_legend(figure, nets)
    return figure


def draw_gradients(runs: Sequence[Run]) -> plt.Figure | None:
    """Draw the L2 norm of the gradient of each layer's weights; see `draw_responses`."""
    nets = _read_nets(runs, "gradient")
    if not nets:
        return None
    figure, axes = new_figure(1, 1, width=7.5)
    axis = axes[0, 0]
    _draw(axis, nets)
    axis.set(title="gradients of the layers' weights", xlabel="layer", ylabel="L2 norm")
    axis.set_yscale("log")
    _add_net_legend(figure, nets)
    return figure


def _read_nets(runs: Sequence[Run], column: str) -> list[NetLayers]:
    """Average the layers' values of each net over its seeds.

    Only the seeds that have come furthest count: values of different iterations do not mix.
    """
    pairs = zip(runs, net_labels(runs), strict=True)
    having = [(run, label) for run, label in pairs if any(column in row for row in run.layers)]
    nets: list[NetLayers] = []
    for seeds in group_by(having, lambda pair: pair[0].row["config"]).values():
        run, label = seeds[0]
        furthest, last = max(_iteration(run) for run, _ in seeds), run.row["iterations"]
        if furthest < last:
            label += f" at {furthest:,} of {last:,} iterations"
        by_seed = [_column(run, column) for run, _ in seeds if _iteration(run) == furthest]
        values = [mean(by_layer) for by_layer in zip(*by_seed, strict=True)]
        dashes = "dashed" if run.row["family"] == "plain" else "solid"
        nets.append(NetLayers(Style.numbered(len(nets), label), dashes, values))
    return nets


def _iteration(run: Run) -> int:
    return int(run.layers[0]["iteration"])


def _column(run: Run, column: str) -> list[float]:
    return [row[column] for row in run.layers if column in row]


def _draw(axis: plt.Axes, nets: Sequence[NetLayers]) -> None:
    for style, dashes, values in nets:
        # Markers at equal distances on paper, each style's at places of its own.
        every = (0.03 * (style.order % 6), 0.12)
        marker: dict[str, Any] = {"marker": style.marker, "markersize": 4, "markevery": every}
        line: dict[str, Any] = {"color": style.color, "linestyle": dashes, "linewidth": 1.3}
        axis.plot(range(1, len(values) + 1), values, **line, **marker)


def _add_net_legend(figure: plt.Figure, nets: Sequence[NetLayers]) -> None:
    look = {"linewidth": 1.3, "markersize": 4}
    entries = [(net.style, look | {"linestyle": net.dashes}) for net in nets]
    add_legend(figure, entries, "at the last evaluation")
