"""Shows finished runs: `python -m src.report runs/cifar10 -o report`."""

import argparse
import sys
from itertools import groupby
from pathlib import Path

from src.report.results import read_runs, write_csv
from src.report.table import fill_in, results_table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.report",
        description="Prints the errors of finished runs, and writes them (CSV) and their curves (SVG and PNG), "
        "one file of each for every data set.",
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders of them")
    parser.add_argument("-o", dest="out", type=Path, default=Path("report"), help="where to write (default: report)")
    parser.add_argument("--readme", type=Path, help="instead, bring the tables of this Markdown file up to date")
    options = parser.parse_args()
    if options.readme:
        options.readme.write_text(fill_in(options.readme.read_text(), options.readme.parent))
        return
    runs, unfinished = read_runs(options.runs)
    for path in unfinished:
        print(f"left out, as it is not finished: {path}", file=sys.stderr)
    if not runs:
        sys.exit(f"there is no finished run in {', '.join(map(str, options.runs))}")
    from src.report.curves import draw_curves

    options.out.mkdir(parents=True, exist_ok=True)
    for data, group in groupby(runs, lambda run: run.row["data"]):
        of_data = list(group)
        write_csv(options.out / f"{data}.csv", [run.row for run in of_data])
        draw_curves(of_data, options.out / data)
        print(results_table([run.row for run in of_data]))
        print(f"written: {options.out / data}.csv, .svg, .png")


if __name__ == "__main__":
    main()
