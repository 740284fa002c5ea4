"""The files of a run directory: rows of CSV files, JSON files, and whether they are still there."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from src.runs.atomic_io import atomic_write, writing
from src.runs.csv_rows import append_rows, read_rows, truncate_rows


class RunFiles:
    """The files in the directory of one run, as the process that holds its lock writes them.

    Args:
        path: the directory.

    Attributes:
        metrics, layers, error, last_checkpoint: paths of files.
        lock: the open lock file; None if this process does not hold the lock.
        written_csvs: the CSV files that have rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics, self.layers = path / "metrics.csv", path / "layers.csv"
        self.last_checkpoint = path / "checkpoints" / "last.ckpt"
        self.error = path / "error.txt"
        self.lock: TextIO | None = None
        self.written_csvs: set[Path] = set()

    def append_metrics(self, columns: Sequence[str], row: dict[str, float]) -> None:
        """Append one row to metrics.csv; a column without a value stays empty."""
        self._append(self.metrics, columns, [row])

    def append_layers(self, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
        """Append rows to layers.csv, one for each layer; columns without a value stay empty."""
        self._append(self.layers, columns, rows)

    def _append(self, path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
        self.check_still_there()
        append_rows(path, columns, rows)
        self.written_csvs.add(path)

    def check_still_there(self) -> None:
        """Check that the locked directory and the CSV files with rows were not moved or removed.

        Otherwise the CSV files would start in the middle, or in the directory of another process.

        Raises:
            FileNotFoundError: one of them is gone.
        """
        if self.lock is None:
            return
        lock = self.path / "lock"
        # Not only its name: another process may have created the directory again.
        if lock.exists() and os.path.samefile(lock, self.lock.fileno()):
            gone = [path for path in self.written_csvs if not path.exists()]
        else:
            gone = [self.path]
        if gone:
            raise FileNotFoundError(
                f"{gone[0]} was removed or moved during the run: put it back and repeat the "
                f"command, or remove what is left of {self.path} to start from scratch"
            )

    def sync_csvs(self) -> None:
        """Sync the rows to the disk that the next checkpoint relies on.

        Raises:
            FileNotFoundError: they are gone.
        """
        self.check_still_there()
        for path in self.written_csvs:
            # fsync takes every write to the file, so one that was opened again will do.
            with writing(path), open(path) as file:
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv, each with the values it has; none if there is no file."""
        return read_rows(self.metrics)

    @property
    def last_iteration(self) -> int:
        """The iteration of the last row of metrics.csv, 0 if there is none."""
        rows = self.rows()
        return int(rows[-1]["iteration"]) if rows else 0

    def truncate(self, iteration: int) -> None:
        """Truncate the CSV files to `iteration` before resuming."""
        existing = [path for path in (self.metrics, self.layers) if path.exists()]
        self.written_csvs = {path for path in existing if truncate_rows(path, iteration)}

    def check_rows(self, logged: Sequence[int]) -> None:
        """Check that metrics.csv has a row for exactly these iterations.

        Raises:
            ValueError: rows are missing, or there are others.
        """
        found = [int(row["iteration"]) for row in self.rows()]
        if found != [*logged]:
            # None is missing or too many if the rows are only out of order.
            wrong = sorted({*logged} ^ {*found}) or found
            raise ValueError(
                f"{self.metrics} does not match its checkpoint (see iteration {wrong[0]}): restore "
                f"the complete file, or remove {self.path} to start from scratch"
            )

    def write_error(self, reason: str) -> None:
        """Record why the run failed, if that can be written."""
        with suppress(OSError):  # the reason itself matters more, and is raised
            atomic_write(self.error, lambda file: file.write(reason.encode()))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, None if there is no such file."""
        path = self.path / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file; a long list of records has one on each line."""
        if isinstance(values, list):
            text = "[" + ",\n".join(map(json.dumps, values)) + "]\n"
        else:
            text = json.dumps(values, indent=2)
        content = text.encode()
        atomic_write(self.path / f"{name}.json", lambda file: file.write(content))
