"""Tables of results next to the paper's, for the terminal, the page and Markdown files."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from src.report.comparison import (
    DEPTH,
    NET,
    PAPER_DATA,
    comparison_key,
    group_by,
    paper_result,
    variant_labels,
)
from src.report.results import Run, name_without_seed
from src.tables import Row, markdown_table, read_csv

HEAD = ("net", "layers", "shortcut", "parameters", "multiply-adds")
ERRORS = ("training error (%)", "test error (%)")
IMAGENET = ("top-5 error (%)", "protocol")
WITH_PAPER = ("seeds", "paper (%)", "difference", "training")
WITHOUT_PAPER = ("seeds", "iterations")
SPEED = ("net", "subject", "precision", "value", "unit", "src.train / this")
FAULT_INJECTION = ("kind", "what", "tried", "failed", "seconds")


def results_table(rows: Sequence[Row]) -> str:
    """Lay out the results of one data set in Markdown.

    Args:
        rows: A row for each run and test protocol, as in `Run.evaluations` or from a CSV file.

    Returns:
        A line for each net, see `results_lines`.
    """
    return markdown_table(results_head(rows[0]["data"]), results_lines(group_seeds(rows)))


def results_head(data: str) -> list[str]:
    """Return the column titles of a data set's results."""
    last = WITH_PAPER if data in PAPER_DATA else WITHOUT_PAPER
    return [*HEAD, *ERRORS, *(IMAGENET if data == "imagenet" else ()), *last]


def group_seeds(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows of one data set that differ in nothing but the seed."""
    return list(group_by(rows, lambda row: (row["config"], row.get("protocol"))).values())


def results_lines(groups: Sequence[Sequence[Row]]) -> list[list[str]]:
    """Describe the final weights' results, a line for each group of seeds.

    Errors are means and standard deviations over the seeds, in percent. The paper's own error
    (Tables 2 to 4 and 6) is given with each net, but the difference from it only for runs that
    were trained as in the paper.
    """
    names = short_names([name_without_seed(seeds[0]) for seeds in groups])
    return [_results_line(name, seeds) for name, seeds in zip(names, groups, strict=True)]


def _results_line(name: str, seeds: Sequence[Row]) -> list[str]:
    row, data = seeds[0], seeds[0]["data"]
    test_errors = [seed["test_error"] for seed in seeds]
    line = [name, str(row["depth"]), row["shortcut"] or "-"]
    line += [f"{row[key] / 1e6:,.2f} M" for key in ("parameters", "macs")]
    line += [mean_std([seed["train_error"] for seed in seeds]), mean_std(test_errors)]
    if data == "imagenet":
        line += [mean_std([seed["test_error_top5"] for seed in seeds]), row["protocol"]]
    line.append(str(len(seeds)))
    if data not in PAPER_DATA:
        return [*line, f"{row['iterations']:,}"]

    paper = paper_result(row)
    difference = "-"
    if paper and not row["departures"]:
        difference = f"{mean(test_errors) - paper['error']:+.2f}"
    return [
        *line,
        format_paper_result(paper) if paper else "-",
        difference,
        row["departures"] or "as in the paper",
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Drop what all names have in common but the net: `plain20-a`, `resnet20-a` lose `-a`."""
    parts = [name.split("-") for name in names]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    return ["-".join([net, *(part for part in rest if part not in common)]) for net, *rest in parts]


def mean_std(values: Sequence[float], unit: str = "") -> str:
    """Format a mean and, of several values, their standard deviation."""
    std = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{std}{unit}"


def format_paper_result(paper: Row) -> str:
    """Format such as `6.61 ± 0.16, best 6.43 (Table 6)` or `25.03, top-5 7.76 (Table 3)`."""
    std = f" ± {paper['std']:.2f}" if paper["std"] else ""
    best = f", best {paper['best']:.2f}" if paper["best"] else ""
    top5 = f", top-5 {paper['error_top5']:.2f}" if paper["error_top5"] else ""
    return f"{paper['error']:.2f}{std}{best}{top5} ({paper['where']})"


def degradation(runs: Sequence[Run]) -> list[str]:
    """Compare the training errors of the deepest and the shallowest nets (Sec. 1, 4.2).

    Args:
        runs: Runs in any state; only finished ones count.

    Returns:
        A sentence for each data set and way of training, over all families of nets. The nets
        that are compared differ in nothing but their depth.
    """
    finished = [run for run in runs if run.state == "finished"]
    trainings = group_by(finished, lambda run: (run.row["data"], comparison_key(run.config, NET)))
    if not trainings:
        return []

    settings = variant_labels([group[0].config for group in trainings.values()], r"(?!model\.).*")
    sentences = []
    for (data, _), nets, setting in zip(trainings, trainings.values(), settings, strict=True):
        # A kind is a family with its shortcut and other settings of the net.
        kinds = list(group_by(nets, lambda run: comparison_key(run.config, DEPTH)).values())
        labels = variant_labels([kind[0].config for kind in kinds], r"model\..*")
        parts = [_compare_depths(kind, label) for kind, label in zip(kinds, labels, strict=True)]
        if any(parts):
            where = f"{data} ({setting})" if setting else data
            sentences.append(f"{where}: {'; '.join(filter(None, parts))}")
    return sentences


def _compare_depths(runs: Sequence[Run], label: str) -> str:
    """Compare the deepest with the shallowest of some runs; empty if all have one depth."""
    by_depth = group_by(runs, lambda run: run.row["depth"])
    if len(by_depth) == 1:
        return ""
    shallow, deep = (
        (depth, [run.row["train_error"] for run in by_depth[depth]])
        for depth in (min(by_depth), max(by_depth))
    )
    increase = mean(deep[1]) - mean(shallow[1])
    sign = ">" if increase > 0 else "<" if increase < 0 else "="
    verdict = f"degradation by {increase:.2f} points" if increase > 0 else "no degradation"
    name = ", ".join(filter(None, (runs[0].row["family"], label)))
    sides = [f"{depth} layers {mean_std(errors, '%')}" for depth, errors in (deep, shallow)]
    return f"{name}: {sides[0]} {sign} {sides[1]} (training error), {verdict}"


def speed_table(rows: Sequence[Row]) -> str:
    """Lay out the benchmark's training speeds, each implementation with its default settings."""
    default = [row for row in rows if row["measure"] == "step, each at its default"]
    return markdown_table(SPEED, [[str(row[key]) for key in SPEED] for row in default])


def fault_injection_table(rows: Sequence[Row]) -> str:
    """Lay out the faults that `make fault-injection` tried, and how often a run failed them."""
    tried = [row for row in rows if row["tried"]]
    lines = [[str(row[key]) for key in FAULT_INJECTION] for row in tried]
    totals = [f"{sum(row[key] for row in tried):.0f}" for key in ("tried", "failed", "seconds")]
    return markdown_table(FAULT_INJECTION, [*lines, ["all", "", *totals]])


TABLES = {
    "table": results_table,
    "speed": speed_table,
    "fault_injection": fault_injection_table,
}


def fill_tables(text: str, root: Path) -> str:
    """Bring the generated tables of a Markdown text up to date.

    Args:
        text: Each table in it stands between `<!-- table: FILE -->` and `<!-- end -->`, where
            FILE is a CSV file. `speed` and `fault_injection` in place of `table` stand for
            tables of `python -m src.benchmark` and `make fault-injection`.
        root: The directory to which FILE is relative.

    Returns:
        The text with all tables made from their files.
    """

    def fill(match: re.Match[str]) -> str:
        table = TABLES[match["kind"]](read_csv(root / match["file"]))
        return f"{match['open']}\n{table}\n<!-- end -->"

    opening = rf"(?P<open><!-- (?P<kind>{'|'.join(TABLES)}): (?P<file>\S+) -->)"
    return re.sub(rf"{opening}\n.*?<!-- end -->", fill, text, flags=re.S)
