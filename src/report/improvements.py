"""What the improvements of Appendix B add to a detector: context, refinement and scales."""

from collections.abc import Sequence

from src.report.comparison import CENTER
from src.report.confidence import (
    Sample,
    difference_interval,
    format_difference,
    paired_interval,
)
from src.tables import Row

# What a detector and its baseline have in common.
SAME = ("family", "shortcut", "depth", "precision", "iterations", "val_images", "batch_norm_images")


def is_baseline(row: Row) -> bool:
    """Return whether a row is of a detector without any improvement."""
    return row.get("protocol", CENTER) == CENTER and not row.get("context")


def gains(groups: Sequence[Sequence[Row]], key: str) -> list[str]:
    """Return what each detector reaches above its baseline: the same net without improvements.

    Args:
        groups: The seeds of each detector and protocol.
        key: The metric.

    Returns:
        For each group the difference with its 95% interval, which is that of the differences
        between the same weights where a group differs by its protocol alone; `-` of baselines, and
        where there is no baseline or more than one.
    """
    cells = []
    for seeds in groups:
        candidates = [group for group in groups if is_baseline(group[0]) and _alike(group, seeds)]
        improved = len(candidates) == 1 and not is_baseline(seeds[0])
        cells.append(_gain(seeds, candidates[0], key) if improved else "-")
    return cells


def _alike(one: Sequence[Row], other: Sequence[Row]) -> bool:
    return all(one[0].get(key) == other[0].get(key) for key in SAME)


def _gain(seeds: Sequence[Row], baseline: Sequence[Row], key: str) -> str:
    of_run = {row["run"]: row[key] for row in baseline}
    if of_run.keys() == {row["run"] for row in seeds}:
        differences = Sample.of([row[key] - of_run[row["run"]] for row in seeds])
        return format_difference(differences.mean, paired_interval(differences))
    one, other = (Sample.of([row[key] for row in rows]) for rows in (seeds, baseline))
    return format_difference(one.mean - other.mean, difference_interval(one, other))
