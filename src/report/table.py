"""Tables of results in Markdown, for the terminal and for README."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

from src.report.results import Row, read_csv, without_seed


def results_table(rows: Sequence[Row]) -> str:
    """One line for the seeds of each run: mean and deviation of the final weights' errors, in percent."""
    head = ("net", "layers", "shortcut", "parameters", "iterations", "training error, %", "test error, %", "seeds")
    lines = []
    for name, group in groupby(rows, without_seed):
        seeds = list(group)
        first = seeds[0]
        count, iterations = f"{first['parameters']:,}", f"{first['iterations']:,}"
        errors = [_spread([row[key] for row in seeds]) for key in ("train_error", "test_error")]
        lines.append((name, str(first["depth"]), first["shortcut"] or "-", count, iterations, *errors, str(len(seeds))))
    return markdown(head, lines)


def speed_table(rows: Sequence[Row]) -> str:
    """Training speed as the benchmark measured it, each implementation at its default; a line each."""
    keys = ("net", "subject", "precision", "value", "unit", "src.train / this")
    lines = [[str(row[key]) for key in keys] for row in rows if row["measure"] == "step, each at its default"]
    return markdown(keys, lines)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    lines = [head, *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def fill_in(text: str, root: Path) -> str:
    """Puts the tables of CSV files below `root` into a text, each between `<!-- table: FILE -->` and `<!-- end -->`.

    `<!-- speed: FILE -->` opens a table of the benchmark's.
    """

    def section(match: re.Match[str]) -> str:
        table = {"table": results_table, "speed": speed_table}[match["kind"]](read_csv(root / match["file"]))
        return f"{match['open']}\n{table}\n<!-- end -->"

    return re.sub(
        r"(?P<open><!-- (?P<kind>table|speed): (?P<file>\S+) -->)\n.*?<!-- end -->", section, text, flags=re.S
    )


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}"
