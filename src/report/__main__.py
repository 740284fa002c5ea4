"""Shows runs, finished and unfinished: `python -m src.report runs/cifar10 -o report`."""

import argparse
import re
import sys
from pathlib import Path

import yaml

from src.report.comparison import CONF, grouped
from src.report.results import LeftOut, Run, read_runs, write_csv
from src.report.results_table import degradation, fill_in, results_table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.report",
        description="Reads run folders and writes, for every data set, the results (CSV), the curves and what single "
        "layers do (SVG and PNG), and one page of everything (index.html). It prints the results.",
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders of them")
    parser.add_argument("-o", dest="out", type=Path, default=Path("report"), help="where to write (default: report)")
    parser.add_argument("--wandb", action="store_true", help="also send finished runs to W&B, with a workspace of them")
    parser.add_argument("--nets", action="store_true", help="instead, print and write the table of nets, nets.csv")
    parser.add_argument("--readme", type=Path, help="instead, bring the tables of this Markdown file up to date")
    options = parser.parse_args()
    if options.readme:
        options.readme.write_text(fill_in(options.readme.read_text(), options.readme.parent))
        return
    if options.nets:
        from src.summary import show_nets

        options.out.mkdir(parents=True, exist_ok=True)
        show_nets(out=options.out / "nets.csv")
        return
    runs, left_out = read_runs(options.runs)
    for place, why in left_out:
        print(f"left out: {place} {why}", file=sys.stderr)
    for run in runs:
        if run.state != "finished":
            why = f": {run.why}" if run.why else ""
            print(f"not in the results, {run.state}: {run.folder.path}{why}", file=sys.stderr)
    if not runs:
        sys.exit(f"there is no run in {', '.join(map(str, options.runs))}")
    write(runs, left_out, options.out)
    if options.wandb:
        show_in_wandb(runs)


def write(runs: list[Run], left_out: LeftOut, out: Path) -> None:
    """Writes everything into `out`, and prints the results and where everything is."""
    from src.report.curves import draw_curves
    from src.report.html import write_page
    from src.report.layer_plots import draw_gradients, draw_responses

    out.mkdir(parents=True, exist_ok=True)
    by_data, figures = grouped(runs, lambda run: run.row["data"]), {}
    for data, of_data in by_data.items():
        path = out / re.sub(r"[^\w.+-]+", "_", data)
        rows = [row for run in of_data for row in run.tests]
        written = []
        if rows:
            write_csv(path.with_name(path.name + ".csv"), rows)
            written.append(".csv")
            print(results_table(rows))
        drawn = {"": draw_curves, "-responses": draw_responses, "-gradients": draw_gradients}
        names = [name for name, draw in drawn.items() if draw(of_data, path.with_name(path.name + name))]
        written += [f"{name}{suffix}" for name in names for suffix in (".svg", ".png")]
        figures[data] = [path.with_name(f"{path.name}{name}.svg") for name in names if name]
        for line in degradation(of_data):
            print(line)
        if written:
            print(f"written: {path}{', '.join(written)}")
    write_page(out / "index.html", by_data, left_out, figures)
    print(f"written: {out / 'index.html'}")


def show_in_wandb(runs: list[Run]) -> None:
    """Sends the finished runs to the project that conf/logger/wandb.yaml names, and the workspace of them."""
    from src.report.wandb_workspace import save, send

    logger = yaml.safe_load((CONF / "logger" / "wandb.yaml").read_text())
    finished = [(run.folder, run.row["family"]) for run in runs if run.state == "finished"]
    send(finished, logger["project"], logger["entity"])
    save(logger["project"], logger["entity"])


if __name__ == "__main__":
    main()
