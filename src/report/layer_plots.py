"""What single layers do at the last evaluation: how strongly they respond (Fig. 7), and their gradients' norms."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from src.report.comparison import grouped
from src.report.figures import legend, new_figure, plt, save
from src.report.results import Run
from src.report.style import COLORS, MARKERS, Style, nets

Net = tuple[Style, str, list[float]]  # how it is drawn, solid or dashed, and the values of its layers


def draw_responses(runs: Sequence[Run], path: Path) -> bool:
    """Standard deviations of the 3x3 layers' responses, in layer order and by size, into `path`.svg and `path`.png.

    Returns False if no run has any.
    """
    found = _nets(runs, "response")
    if found:
        figure, axes = new_figure(2, 1, width=7.5, sharex=True, sharey=True)
        _draw(axes[0, 0], found)
        _draw(axes[1, 0], [(style, dashes, sorted(values, reverse=True)) for style, dashes, values in found])
        responses = [value for _, _, values in found for value in values]
        # A net that did not train would press the others flat.
        scale = {"yscale": "log"} if max(responses) > 30 * median(responses) else {"ylim": (0, None)}
        axes[0, 0].set(title="responses of the 3x3 layers", xlabel="layer", ylabel="std", **scale)
        axes[1, 0].set(xlabel="layer, sorted by size", ylabel="std")
        _finish(figure, found, path)
    return bool(found)


def draw_gradients(runs: Sequence[Run], path: Path) -> bool:
    """L2 norms of the gradients of the layers' weights, from the first layer to the last, as `draw_responses` does."""
    found = _nets(runs, "gradient")
    if found:
        figure, axes = new_figure(1, 1, width=7.5)
        _draw(axes[0, 0], found)
        axes[0, 0].set(title="gradients of the layers' weights", xlabel="layer", ylabel="L2 norm", yscale="log")
        _finish(figure, found, path)
    return bool(found)


def _nets(runs: Sequence[Run], column: str) -> list[Net]:
    """The layers' values of each net, the mean over its seeds; of unfinished seeds, over those that came furthest."""
    having = [(run, name) for run, name in zip(runs, nets(runs), strict=True) if any(column in x for x in run.layers)]
    found = []
    for i, seeds in enumerate(grouped(having, lambda pair: pair[0].row["config"]).values()):
        furthest = max(_evaluated(run) for run, _ in seeds)
        of_seeds = [_column(run, column) for run, _ in seeds if _evaluated(run) == furthest]
        values = [mean(of_layer) for of_layer in zip(*of_seeds, strict=True)]
        (run, name), last = seeds[0], seeds[0][0].row["iterations"]
        label = name if furthest == last else f"{name} at {furthest:,} of {last:,} iterations"
        style = Style(i, label, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
        found.append((style, "dashed" if run.row["family"] == "plain" else "solid", values))
    return found


def _evaluated(run: Run) -> int:
    return int(run.layers[0]["iteration"])


def _column(run: Run, column: str) -> list[float]:
    return [layer[column] for layer in run.layers if column in layer]


def _draw(axis: plt.Axes, found: Sequence[Net]) -> None:
    for style, dashes, values in found:
        marks = {"marker": style.marker, "markersize": 4, "markevery": (0.03 * (style.order % 6), 0.12)}
        axis.plot(range(1, len(values) + 1), values, color=style.color, linestyle=dashes, linewidth=1.3, **marks)


def _finish(figure: plt.Figure, found: Sequence[Net], path: Path) -> None:
    looks = [(style, {"linestyle": dashes, "linewidth": 1.3, "markersize": 4}) for style, dashes, _ in found]
    legend(figure, looks, "at the last evaluation")
    save(figure, path)
