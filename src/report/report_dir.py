"""Write the report directory: tables, figures and the page."""

import re
from collections.abc import Sequence
from pathlib import Path

from src.report.comparison import group_by
from src.report.convergence import convergence_rows, convergence_table
from src.report.convergence_plot import draw_convergence
from src.report.curves import draw_curves
from src.report.departure_plot import draw_departures
from src.report.departures import departure_rows, departure_table
from src.report.differences import degradation, seed_statistics
from src.report.figures import save_figure
from src.report.html import write_page
from src.report.layer_plots import draw_gradients, draw_responses
from src.report.results import Run, Skipped
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
PAGE = "index.html"


def file_name(data: str) -> str:
    """Return the name of the files of a data set, without the part of the figure and the suffix."""
    # The name comes from a config file, which may be a stranger's.
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
    by_data = group_by(runs, lambda run: run.row["data"])
    layer_figures: dict[str, list[Path]] = {}
    messages = []
    for data, members in by_data.items():
        name = file_name(data)
        layer_figures[data], written = [], []
        rows = [row for run in members for row in run.evaluations]
        if rows:
            write_csv(out / f"{name}.csv", rows)
            written.append(".csv")
            messages.append(results_table(rows))
            convergence = convergence_rows(members)
            write_csv(out / f"{name}-convergence.csv", convergence)
            written.append("-convergence.csv")
            messages.append(convergence_table(convergence))
            changes = departure_rows(members)
            if changes:
                write_csv(out / f"{name}-departures.csv", changes)
                written.append("-departures.csv")
                messages.append(departure_table(changes))
        for part, draw in DRAWINGS.items():
            figure = draw(members)
            if figure:
                svg = save_figure(figure, out / f"{name}{part}")
                written += [f"{part}.svg", f"{part}.png"]
                if part:  # the page has curves of its own
                    layer_figures[data].append(svg)
        messages += [*degradation(members), *seed_statistics(rows)]
        if written:
            messages.append(f"written: {out / name}{', '.join(written)}")
    write_page(out / PAGE, by_data, skipped, layer_figures)
    return [*messages, f"written: {out / PAGE}"]
