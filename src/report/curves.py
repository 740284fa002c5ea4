"""The figure of the paper: training error dashed, test error bold, one color per depth (Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from src.report.comparison import grouped
from src.report.figures import legend, new_figure, plt, save
from src.report.results import Run
from src.report.style import Style, error_limit, styles

PANELS_PER_ROW = 3
ENDS = {"unfinished": ">", "failed": "X"}  # how the curve of a run ends that is not whole
Curve = list[tuple[float, float]]  # (iteration, error)


def draw_curves(runs: Sequence[Run], path: Path) -> bool:
    """CropParams plain nets beside residual ones and others into `path`.svg and `path`.png; the axes are shared.

    Each run is drawn as far as it is. Of several seeds of one run each is thin, and their mean is bold. Returns False
    if no run has been evaluated yet.
    """
    all_drawn = [pair for pair in zip(runs, styles(runs), strict=True) if pair[0].curve(_bold(pair[0]))]
    if not all_drawn:
        return False
    families = grouped(all_drawn, lambda pair: pair[0].row["family"])
    columns = min(PANELS_PER_ROW, len(families))
    figure, axes = new_figure(-(-len(families) // columns), columns, sharex=True, sharey=True)
    for axis, (family, drawn) in zip(axes.flat, families.items(), strict=False):
        for seeds in grouped(drawn, lambda pair: pair[0].row["config"]).values():
            _draw_seeds(axis, [run for run, _ in seeds], seeds[0][1])
        axis.set_title(f"{family} nets")
        axis.set_xlabel("iterations")
        axis.xaxis.set_tick_params(labelbottom=True)
    for axis in axes.flat[len(families) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("error (%)")
    runs = [run for run, _ in all_drawn]
    limit = error_limit(runs)
    axes[0, 0].set(xlim=(0, max(run.row["iterations"] for run in runs)), ylim=(0, limit))
    axes[0, 0].xaxis.set_major_formatter("{x:,.0f}")
    legend(
        figure, [(style, {"linewidth": 1.9, "markersize": 4}) for _, style in all_drawn], _what_lines_are(runs, limit)
    )
    save(figure, path)
    return True


def _bold(run: Run) -> str:
    return f"{run.held_out}/error"


def _draw_seeds(axis: plt.Axes, seeds: Sequence[Run], style: Style) -> None:
    for column, dashes, width in (("train/error", "dashed", 1.0), (_bold(seeds[0]), "solid", 1.9)):
        curves = [run.curve(column) for run in seeds]
        look = {"color": style.color, "linestyle": dashes}
        if column != "train/error":
            # Markers at equal distances on the paper, not on top of each other's.
            every = (0.03 * (style.order % 6), 0.18) if len(curves[0]) > 2 else None
            look |= {"marker": style.marker, "markersize": 4, "markevery": every}
            if len(seeds) > 1:
                for curve in curves:
                    axis.plot(*zip(*curve, strict=True), color=style.color, linewidth=0.5)
        # The mean is over all seeds or over all that are finished, nowhere over some more.
        finished = [curve for run, curve in zip(seeds, curves, strict=True) if run.state == "finished"]
        axis.plot(*zip(*_mean(finished or curves), strict=True), linewidth=width, **look)
    for run in seeds:
        if run.state in ENDS:
            end = {"marker": ENDS[run.state], "color": style.color, "markerfacecolor": "white", "markersize": 7}
            axis.plot(*run.curve(_bold(run))[-1], zorder=3, **end)


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean at the iterations that all curves have."""
    errors = [dict(curve) for curve in curves]
    shared = [iteration for iteration, _ in curves[0] if all(iteration in e for e in errors)]
    return [(iteration, mean(e[iteration] for e in errors)) for iteration in shared]


def _what_lines_are(runs: Sequence[Run], limit: float) -> str:
    splits = sorted({"validation" if run.held_out == "val" else "test" for run in runs})
    words = [f"bold: {' or '.join(splits)}", "dashed: training"]
    if any(len(seeds) > 1 for seeds in grouped(runs, lambda run: run.row["config"]).values()):
        words.append("thin: single seeds")
    states = {run.state for run in runs}
    words += [f"{sign} {state}" for state, sign in (("unfinished", "▷"), ("failed", "✕")) if state in states]
    above = {f"{run.row['family']}-{run.row['depth']}": None for run in runs if run.curve(_bold(run))[-1][1] > limit}
    words += [f"above {limit:.0f}%: {' and '.join(above)}"] if above else []
    return ", ".join(words)
