"""Make tables, figures and a page of runs: `python -m src.report runs/cifar10 -o report`."""

import argparse
import re
import sys
from pathlib import Path

from src.report.comparison import group_by
from src.report.convergence import convergence_rows, convergence_table
from src.report.differences import degradation, seed_statistics
from src.report.results import Run, Skipped, read_runs
from src.report.results_table import fill_tables, results_table
from src.tables import write_csv


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m src.report",
        description="Read run directories, finished or not, and write for each data set the "
        "results (CSV), error curves and layer statistics (SVG and PNG), and one page of "
        "everything (index.html). The results are also printed.",
    )
    runs_help = "run directories, or directories that contain some (default: runs)"
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help=runs_help)
    out_help = "the directory to write to (default: report)"
    parser.add_argument("-o", dest="out", type=Path, default="report", help=out_help)
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="also send the finished runs to W&B, unless they are there, and save a workspace and "
        "a study that compare them",
    )
    parser.add_argument("--project", help="of W&B, for all runs (default: each run's own)")
    parser.add_argument("--entity", help="of W&B, for all runs (default: each run's own)")
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="only update the generated tables of this Markdown file",
    )
    options = parser.parse_args()
    if options.readme:
        text = fill_tables(options.readme.read_text(), options.readme.parent)
        options.readme.write_text(text)
        return

    runs, skipped = read_runs(options.runs)
    for path, reason in skipped:
        print(f"skipped: {path} {reason}", file=sys.stderr)
    for run in runs:
        if not run.finished:
            error = f": {run.error}" if run.error else ""
            print(f"not in the results, {run.state}: {run.path}{error}", file=sys.stderr)
    if not runs:
        sys.exit(f"there is no run in {', '.join(map(str, options.runs))}")
    write_report(runs, skipped, options.out)
    if options.wandb:
        # Here, as nothing of W&B is imported unless it is asked for.
        from src.report.wandb_upload import send_to_wandb

        send_to_wandb(runs, options.project, options.entity)


def write_report(runs: list[Run], skipped: Skipped, out: Path) -> None:
    """Write tables, figures and the page into `out`, and print the results."""
    # Here, so that --help and --readme do not wait for matplotlib and Plotly.
    from src.report.convergence_plot import draw_convergence
    from src.report.curves import draw_curves
    from src.report.figures import save_figure
    from src.report.html import write_page
    from src.report.layer_plots import draw_gradients, draw_responses
    from src.report.signal_plots import draw_signals

    drawings = {
        "": draw_curves,
        "-convergence": draw_convergence,
        "-signals": draw_signals,
        "-responses": draw_responses,
        "-gradients": draw_gradients,
    }
    out.mkdir(parents=True, exist_ok=True)
    by_data = group_by(runs, lambda run: run.row["data"])
    layer_figures: dict[str, list[Path]] = {}
    for data, members in by_data.items():
        # The name comes from a config file, which may be a stranger's.
        name = re.sub(r"[^\w.+-]+", "_", data)
        layer_figures[data], written = [], []
        rows = [row for run in members for row in run.evaluations]
        if rows:
            write_csv(out / f"{name}.csv", rows)
            written.append(".csv")
            print(results_table(rows))
            convergence = convergence_rows(members)
            write_csv(out / f"{name}-convergence.csv", convergence)
            written.append("-convergence.csv")
            print(convergence_table(convergence))
        for part, draw in drawings.items():
            figure = draw(members)
            if figure:
                svg = save_figure(figure, out / f"{name}{part}")
                written += [f"{part}.svg", f"{part}.png"]
                if part:  # the page has curves of its own
                    layer_figures[data].append(svg)
        for sentence in [*degradation(members), *seed_statistics(rows)]:
            print(sentence)
        if written:
            print(f"written: {out / name}{', '.join(written)}")
    write_page(out / "index.html", by_data, skipped, layer_figures)
    print(f"written: {out / 'index.html'}")


if __name__ == "__main__":
    main()
