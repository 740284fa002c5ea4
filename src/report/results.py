"""Reads run folders into rows of results, and writes and reads those rows as CSV."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from src.run import RunFolder

Row = dict[str, Any]


@dataclass
class Run:
    """A finished run: its row of results, and its metrics, one dict of numbers per row of metrics.csv."""

    row: Row
    metrics: list[dict[str, float]]


def read_runs(places: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs in and below some folders, by data set and name, and the folders of the unfinished ones."""
    folders = sorted({config.parent for place in places for config in Path(place).rglob("config.yaml")})
    unfinished = [folder for folder in folders if not (folder / "summary.json").exists()]
    runs = [_read_run(folder) for folder in folders if folder not in unfinished]
    return sorted(
        runs, key=lambda run: (run.row["data"], run.row["family"], run.row["depth"], run.row["run"])
    ), unfinished


def _read_run(folder: Path) -> Run:
    run, config = RunFolder(folder, {}), yaml.safe_load((folder / "config.yaml").read_text())
    summary, finished = run.summary, (folder / "summary.json").stat().st_mtime
    summary["versions"] = " ".join(f"{name}={version}" for name, version in summary["versions"].items())
    row = {
        "run": folder.name,
        # Both families are functions of one name: `plain...` makes plain nets.
        "family": "plain" if config["model"]["_target_"].rpartition(".")[2].startswith("plain") else "residual",
        **summary,
        "date": datetime.fromtimestamp(finished, UTC).date().isoformat(),
    }
    return Run(row, run.rows())


def without_seed(row: Row) -> str:
    """What the seeds of one experiment have in common: a run folder's name tells all that is not the default."""
    return re.sub(r"-s\d+$", "", row["run"])


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """Rows as `write_csv` wrote them, numbers as numbers."""

    def value(text: str) -> Any:
        try:
            return float(text) if "." in text else int(text)
        except ValueError:
            return text

    with open(path, newline="") as file:
        return [{key: value(text) for key, text in line.items()} for line in csv.DictReader(file)]
