"""Rows of the CSV files that a run appends to, cuts back when it resumes, and reads again."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from src.runs.atomic_io import atomic_write, writing


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a CSV file, after a header if the file is new.

    A file keeps the columns that it has: a run that resumes may have been begun by an older
    version, which wrote fewer.
    Lightning's CSVLogger is not used: it deletes its file when a run resumes.

    Raises:
        OSError: the file cannot be written.
    """
    with writing(path), open(path, "a+", newline="") as file:
        file.seek(0)
        existing = next(csv.reader(file), None)
        writer = csv.DictWriter(
            file, existing or columns, extrasaction="ignore", lineterminator="\n"
        )
        if not existing:
            writer.writeheader()
        writer.writerows(rows)


def truncate_rows(path: Path, last_iteration: float) -> bool:
    """Drop the rows of a CSV file after an iteration, and an incomplete last line.

    Args:
        path: a CSV file whose first column is the iteration, or another number.
        last_iteration: the last one to keep; infinity drops an incomplete line only.

    Returns:
        Whether rows remain; without any, the file is removed.
    """
    lines = path.read_text().splitlines(keepends=True)
    header, rows = lines[:1], lines[1:]
    # A kill can cut the last row short: only a line with its end is known to be complete.
    complete = [row for row in rows if row.endswith("\n")]
    kept = [row for row in complete if float(row.split(",")[0]) <= last_iteration]

    # Not in place: a kill in the middle would lose rows.
    if kept:
        atomic_write(path, lambda file: file.write("".join(header + kept).encode()))
    else:
        path.unlink()
    return bool(kept)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a CSV file of numbers, each with the values it has.

    Without a file there are none.
    """
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
