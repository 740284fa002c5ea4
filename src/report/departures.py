"""What single choices are worth: ways of training that differ from a baseline in one key."""

from collections.abc import Sequence
from typing import Any

from src.report.comparison import changed_keys, complete_keys, describe_change
from src.report.confidence import Sample, difference_interval, format_difference
from src.report.grouping import group_by
from src.report.results import Run
from src.tables import Row, markdown_table

Seeds = Sequence[Run]  # that differ in nothing but the seed
Change = tuple[str, Any, Any]  # key, value, value of the baseline


def departure_rows(runs: Sequence[Run]) -> list[Row]:
    """Compare the test errors of ways of training with a baseline, for each net and length.

    The baseline is the way of training from which most others differ in one key; of
    several of these, the one with the fewest values that are not defaults.

    Args:
        runs: Runs on one data set; only finished ones with several seeds count.

    Returns:
        A row for each way of training that differs from the baseline in one key, the lowest
        difference first. `low` and `high` bound its 95% interval; they are None without one.
    """
    rows = []
    finished = [run for run in runs if run.finished]
    for nets in group_by(finished, lambda run: (run.net, run.row["iterations"])).values():
        groups = group_by(nets, lambda run: run.row["config"])
        several = [seeds for seeds in groups.values() if len(seeds) > 1]
        rows += sorted(_compare(several), key=lambda row: row["difference"])
    return rows


def _compare(groups: Sequence[Seeds]) -> list[Row]:
    by_base = [[(c, other) for other in groups if (c := _change(other, base))] for base in groups]
    if not any(by_base):
        return []
    # From the last to the first key: most neighbors, then fewest values that are not defaults.
    base, changed = max(
        zip(groups, by_base, strict=True),
        key=lambda pair: (len(pair[1]), -len(changed_keys(pair[0][0].config))),
    )
    return [_row(change, seeds, base) for change, seeds in changed]


def _change(seeds: Seeds, base: Seeds) -> Change | None:
    """Return the key in which two ways of training differ; None if it is not one."""
    own, other = (complete_keys(group[0].config) for group in (seeds, base))
    changes = [
        (key, own.get(key), other.get(key))
        for key in {**own, **other}
        if key != "seed" and own.get(key) != other.get(key)
    ]
    return changes[0] if len(changes) == 1 else None


def _row(change: Change, seeds: Seeds, base: Seeds) -> Row:
    own, other = (Sample.of([run.row["test_error"] for run in group]) for group in (seeds, base))
    low, high = difference_interval(own, other) or (None, None)
    run = seeds[0].row
    return {
        "data": run["data"],
        "net": seeds[0].net,
        "iterations": run["iterations"],
        "change": describe_change(*change),
        "test_error": own.mean,
        "std": own.std,
        "seeds": own.size,
        "baseline_test_error": other.mean,
        "baseline_std": other.std,
        "baseline_seeds": other.size,
        "difference": own.mean - other.mean,
        "low": low,
        "high": high,
    }


def departure_table(rows: Sequence[Row]) -> str:
    """Lay out the differences from the baseline in Markdown.

    Args:
        rows: As from `departure_rows` or from a CSV file.
    """
    columns = [
        "net",
        "iterations",
        "change",
        "test error (%)",
        "difference (points)",
        "seeds",
        "at 95%",
    ]
    lines = []
    for (net, iterations), changes in group_by(rows, net_and_length).items():
        start = [net, f"{iterations:,}"]
        base = [changes[0][f"baseline_{key}"] for key in ("test_error", "std", "seeds")]
        lines.append([*start, "baseline", str(Sample(*base)), "-", f"{base[-1]:.0f}", "-"])
        for row in changes:
            own = Sample(row["test_error"], row["std"], row["seeds"])
            difference = format_difference(row["difference"], interval(row))
            cells = [str(own), difference, f"{own.size:.0f}", verdict(row)]
            lines.append([*start, row["change"], *cells])
    return markdown_table(columns, lines)


def net_and_length(row: Row) -> tuple[str, int]:
    """Return what the rows that are compared with one baseline have in common."""
    return row["net"], row["iterations"]


def interval(row: Row) -> tuple[float, float] | None:
    """Return the 95% interval of a row, also of one from a CSV file; None if it has none."""
    return (row["low"], row["high"]) if isinstance(row["low"], float) else None


def verdict(row: Row) -> str:
    """Say which difference the interval of a row supports: one that excludes 0."""
    bounds = interval(row)
    if bounds and (bounds[0] > 0 or bounds[1] < 0):
        return "higher error" if row["difference"] > 0 else "lower error"
    return "no difference shown"
