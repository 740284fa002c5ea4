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
    figure, axes = plt.subplots(1, len(families), figsize=(4.2 * len(families), 3.4), sharey=True, squeeze=False)
    for axis, family in zip(axes[0], families, strict=True):
        for run in runs:
            if run.row["family"] == family:
                _draw_run(axis, run, COLOURS[depths.index(run.row["depth"]) % len(COLOURS)])
        axis.set(title=f"{family} nets", xlabel="iterations", ylim=(0, None))
        axis.set_xlim(0, max(run.row["iterations"] for run in runs))
        axis.grid(alpha=0.3, linewidth=0.5)
        # One entry per depth, however many seeds there are.
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(handles.values(), handles, title="bold: test, dashed: training", frameon=False)
    axes[0][0].set_ylabel("error (%)")
    figure.tight_layout()
    figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})
    figure.savefig(path.with_name(path.name + ".png"), dpi=150)
    plt.close(figure)


def _draw_run(axis: plt.Axes, run: Run, colour: str) -> None:
    held_out = "test" if not run.row["val_images"] else "val"
    curves = [(held_out, "solid", 1.8, f"{run.row['depth']} layers"), ("train", "dashed", 0.9, None)]
    for split, style, width, label in curves:
        points = [(m["iteration"], m[f"{split}/error"]) for m in run.metrics if f"{split}/error" in m]
        axis.plot(*zip(*points, strict=True), color=colour, linestyle=style, linewidth=width, label=label)
