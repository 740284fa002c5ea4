"""Make tables, figures and a page of runs: `python -m src.report runs/cifar10 -o report`."""

import argparse
import sys
from pathlib import Path

from src.report.reading import read_runs
from src.report.results_table import fill_tables


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
        help="also send the finished runs to W&B, unless they are there, and save a workspace, a "
        "study and a report that compare them",
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
    # Here, so that --help and --readme do not wait for matplotlib and Plotly.
    from src.report.report_dir import write_report

    print("\n".join(write_report(runs, skipped, options.out)))
    if options.wandb:
        # Here, as nothing of W&B is imported unless it is asked for.
        from src.report.wandb_upload import send_to_wandb

        send_to_wandb(runs, options.project, options.entity)


if __name__ == "__main__":
    main()
