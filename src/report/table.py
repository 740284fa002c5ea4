"""The table of results, in Markdown, as README and the terminal show it."""

from collections.abc import Sequence
from itertools import groupby
from statistics import mean, stdev

from src.report.results import Row, without_seed

HEAD = ("net", "layers", "shortcut", "parameters", "iterations", "training error, %", "test error, %", "seeds")


def table(rows: Sequence[Row]) -> str:
    """One line for the seeds of each run, mean and deviation; errors are of the final weights, in percent."""
    lines = [HEAD]
    for name, group in groupby(rows, without_seed):
        seeds = list(group)
        first = seeds[0]
        lines.append(
            (
                name,
                str(first["depth"]),
                first["shortcut"] or "-",
                f"{first['parameters']:,}",
                f"{first['iterations']:,}",
                _spread([row["train_error"] for row in seeds]),
                _spread([row["test_error"] for row in seeds]),
                str(len(seeds)),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}"
