"""Write the report directory: tables, figures and the page."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from src.report.convergence import convergence_rows, convergence_table
from src.report.convergence_plot import draw_convergence
from src.report.curves import draw_curves
from src.report.departure_plot import draw_departures
from src.report.departures import departure_rows, departure_table
from src.report.detection import detection_facts, detection_table
from src.report.detection_plot import draw_metric, draw_precision
from src.report.differences import degradation, seed_statistics
from src.report.figures import save_figure
from src.report.grouping import group_by
from src.report.html import write_page
from src.report.layer_plots import draw_gradients, draw_responses
from src.report.reading import Skipped
from src.report.results import Run, classifies
from src.report.results_table import results_table
from src.report.signal_plots import draw_signals
from src.tables import write_csv

RESPONSES = "-responses"
DRAWINGS = {
    "": draw_curves,
    "-convergence": draw_convergence,
    "-departures": draw_departures,
    "-signals": draw_signals,
    RESPONSES: draw_responses,
    "-gradients": draw_gradients,
}
TASK_DRAWINGS: dict[str, tuple[Callable[[Sequence[Run]], Figure | None], str]] = {
    "detection": (draw_precision, "-precision"),
    "segmentation": (partial(draw_metric, metric="iou", title="mean IoU"), "-iou"),
    "localization": (
        partial(draw_metric, metric="localization_error", title="localization error"),
        "-localization",
    ),
}
TASK_DRAWINGS["rcnn"] = TASK_DRAWINGS["localization"]
PAGE = "index.html"
# Tables and sentences in Markdown, the ends of the names of what was written, and figures.
Written = tuple[list[str], list[str], list[Path]]


def file_name(data: str) -> str:
    """Return the name of the files of a data set, without the part of the figure and the suffix."""
    # The name comes from a config file, which may not be trusted.
    return re.sub(r"[^\w.+-]+", "_", data)


def write_report(runs: Sequence[Run], skipped: Skipped, out: Path) -> list[str]:
    """Write tables, figures and the page.

    Args:
        runs: Runs in any state.
        skipped: What could not be read, with the reason.
        out: The directory to write to.

    Returns:
        The results in Markdown, and what was written, to be printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    by_data = group_by(runs, _data_and_task)
    figures: dict[str, list[Path]] = {}
    messages = []
    for data, members in by_data.items():
        write = write_classification if classifies(members[0]) else write_detection
        tables, written, figures[data] = write(members, out / file_name(data))
        messages += tables
        if written:
            messages.append(f"written: {out / file_name(data)}{', '.join(written)}")
    write_page(out / PAGE, by_data, skipped, figures)
    return [*messages, f"written: {out / PAGE}"]


def _data_and_task(run: Run) -> str:
    data = run.row["data"]
    return data if classifies(run) else f"{data}-{run.row['task']}"


def write_classification(runs: Sequence[Run], path: Path) -> Written:
    """Write the tables and figures of classifiers on one data set.

    Args:
        runs: Runs in any state.
        path: What the names of all files begin with.
    """
    messages, written, figures = [], [], []
    rows = [row for run in runs for row in run.evaluations]
    if rows:
        tables = {
            "": (rows, results_table),
            "-convergence": (convergence_rows(runs), convergence_table),
            "-departures": (departure_rows(runs), departure_table),
        }
        for part, (lines, layout) in tables.items():
            if lines:
                write_csv(path.with_name(f"{path.name}{part}.csv"), lines)
                written.append(f"{part}.csv")
                messages.append(layout(lines))
    for part, draw in DRAWINGS.items():
        figure = draw(runs)
        if figure:
            svg = save_figure(figure, path.with_name(f"{path.name}{part}"))
            written += [f"{part}.svg", f"{part}.png"]
            if part:  # the page has curves of its own
                figures.append(svg)
    return [*messages, *degradation(runs), *seed_statistics(rows)], written, figures


def write_detection(runs: Sequence[Run], path: Path) -> Written:
    """Write the tables and the figure of another task, as `write_classification` does."""
    messages, written, figures = [], [], []
    rows = [row for run in runs for row in run.evaluations]
    if rows:
        write_csv(path.with_name(f"{path.name}.csv"), rows)
        written.append(".csv")
        messages += [detection_table(rows), *detection_facts(rows)]
    draw, part = TASK_DRAWINGS[runs[0].row["task"]]
    figure = draw(runs)
    if figure:
        figures.append(save_figure(figure, path.with_name(f"{path.name}{part}")))
        written += [f"{part}.svg", f"{part}.png"]
    return messages, written, figures
