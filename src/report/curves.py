"""The figure of the paper: training error dashed, test error bold, one colour per depth (Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from src.report.results import Run

# Okabe and Ito's colours, told apart by colour-blind readers, from dark to light for print in grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Draws plain nets beside residual ones into `path`.svg and `path`.png; the y axis is shared."""
    plt.rcParams.update({"svg.hashsalt": "", "svg.fonttype": "none", "font.size": 9})
    depths = sorted({run.row["depth"] for run in runs})
    families = [f for f in ("plain", "residual") if any(run.row["family"] == f for run in runs)]
    size = (4.2 * len(families), 3.6)
    figure, axes = plt.subplots(1, len(families), figsize=size, sharey=True, squeeze=False, layout="constrained")
    lines = {}
    for axis, family in zip(axes[0], families, strict=True):
        for run in runs:
            if run.row["family"] == family:
                lines[run.row["depth"]] = _draw_run(axis, run, COLOURS[depths.index(run.row["depth"]) % len(COLOURS)])
        axis.set(title=f"{family} nets", xlabel="iterations", ylim=(0, None))
        axis.set_xlim(0, max(run.row["iterations"] for run in runs))
        axis.grid(alpha=0.3, linewidth=0.5)
    axes[0][0].set_ylabel("error (%)")
    # One entry per depth, however many seeds and families there are.
    labels = [f"{depth} layers" for depth in depths]
    held_out = " or ".join(sorted({"validation" if run.row["val_images"] else "test" for run in runs}))
    title = f"bold: {held_out}, dashed: training"
    handles = [lines[depth] for depth in depths]
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=len(depths), frameon=False)
    figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})
    figure.savefig(path.with_name(path.name + ".png"), dpi=150)
    plt.close(figure)


def _draw_run(axis: plt.Axes, run: Run, colour: str) -> plt.Line2D:
    """Draws both curves of a run; returns the bold one."""
    held_out = "test" if not run.row["val_images"] else "val"
    for split, style, width in (("train", "dashed", 0.9), (held_out, "solid", 1.8)):
        points = [(m["iteration"], m[f"{split}/error"]) for m in run.metrics if f"{split}/error" in m]
        (line,) = axis.plot(*zip(*points, strict=True), color=colour, linestyle=style, linewidth=width)
    return line
