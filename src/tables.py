"""Read and write CSV files, and lay out rows as a Markdown table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_csv(path: Path) -> list[Row]:
    """Read the rows of a CSV file; what looks like a number becomes one."""
    with open(path, newline="") as file:
        return [
            {column: _parse(text) for column, text in row.items()} for row in csv.DictReader(file)
        ]


def _parse(text: str) -> int | float | str:
    try:
        # 1e5 stays a text, as does nan: what a float prints has a point.
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a CSV file.

    Args:
        path: The file, which is replaced.
        rows: They may differ in their columns; a row's missing columns stay empty.
    """
    # dict.fromkeys is a set in order: each column once, where it first appears.
    columns = dict.fromkeys(column for row in rows for column in row)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out lines of text below their column titles, padded to equal widths."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        for line in (head, rule, *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
