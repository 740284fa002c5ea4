"""How early nets converge: "ResNet eases the optimization" (Sec. 4.1, the remark on Fig. 4)."""

from collections.abc import Sequence

from src.report.confidence import Sample
from src.report.grouping import group_seeds
from src.report.labels import group_names, layers_cell
from src.report.results import Run
from src.tables import Row, markdown_table

THRESHOLDS = (50, 20, 5)  # training errors in percent
IN_A_ROW = 3  # evaluations: a single one below may be luck


def first_below(run: Run, threshold: float) -> float | None:
    """Return the first evaluation from which `IN_A_ROW` training errors are below a threshold.

    The training error is over the mini-batches since the evaluation before.

    Returns:
        Its iteration; None if there is none.
    """
    curve = run.curve("train/error")
    below = [error < threshold for _, error in curve]
    starts = range(len(curve) - IN_A_ROW + 1)
    return next((curve[i][0] for i in starts if all(below[i : i + IN_A_ROW])), None)


def convergence_rows(runs: Sequence[Run]) -> list[Row]:
    """Return a row for each finished run, with the column `below_N` for each threshold N."""
    keys = ("run", "family", "depth", "data", "seed", "iterations", "config")
    return [
        {key: run.row[key] for key in keys}
        | {f"below_{threshold}": first_below(run, threshold) for threshold in THRESHOLDS}
        for run in runs
        if run.finished and run.curve("train/error")
    ]


def convergence_table(rows: Sequence[Row]) -> str:
    """Lay out when nets converge, with a line for each group of seeds.

    Args:
        rows: As from `convergence_rows` or from a CSV file, of one data set.

    Returns:
        A Markdown table: mean and standard deviation of the iterations over the seeds that got
        there, and how many did if not all.
    """
    lines, groups = [], group_seeds(rows)
    for name, seeds in zip(group_names(groups), groups, strict=True):
        cells = [_describe([row[f"below_{t}"] for row in seeds]) for t in THRESHOLDS]
        lines.append([name, layers_cell(seeds[0]), *cells, str(len(seeds))])
    return markdown_table(["net", "layers", *(f"below {t}%" for t in THRESHOLDS), "seeds"], lines)


def _describe(iterations: Sequence[float | None]) -> str:
    reached = [i for i in iterations if i]  # a CSV file has an empty cell in place of None
    if not reached:
        return "never"
    sample = Sample.of(reached)
    std = f" ± {sample.std:,.0f}" if sample.size > 1 else ""
    part = "" if len(reached) == len(iterations) else f" ({len(reached)} of {len(iterations)})"
    return f"{sample.mean:,.0f}{std}{part}"
