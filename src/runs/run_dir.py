"""What a run folder is: its name, its lock, its files, and whether the run in it is finished.

A folder is named by what the run is, so the same command finds its own folder again:

    runs/<data>/<net>-<what differs from the defaults>-s<seed>/
        config.yaml            the resolved config
        metrics.csv            a row per logged iteration; errors in percent
        layers.csv             at each evaluation, the gradient and the response of each layer
        checkpoints/           last.ckpt, and previous.ckpt before it
        summary.json           the results; written last, so it is there when the run is finished
        10crop.json            and multiscale.json: what those tests of photos gave
        error.txt, log.txt     why the last try failed, if it did; what a run of a sweep printed
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO

import yaml

from src.runs.atomic_io import append, atomic_write, writing
from src.runs.naming import differences, identity

STAGES = ("train", "val", "test")
COLUMNS = ["iteration", "lr", *(f"{s}/{m}" for s in STAGES for m in ("loss", "error", "error_top5"))]
LAYER_COLUMNS = ["iteration", "layer", "gradient", "response"]


class LockedError(ValueError):
    """Another process is at work in a run folder."""


class RunDir:
    """The folder of one run, whether it is there yet or not."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self.metrics, self.layers = path / "metrics.csv", path / "layers.csv"
        self.last_checkpoint, self.error = path / "checkpoints" / "last.ckpt", path / "error.txt"
        self.lock: TextIO | None = None  # held by this process
        self.filled: set[Path] = set()  # the CSV files that have rows

    @classmethod
    def trained(cls, path: Path) -> Self:
        """The folder of a run, with its config. Raises FileNotFoundError if there is no checkpoint in it."""
        if not cls(path, {}).last_checkpoint.exists():
            raise FileNotFoundError(f"{path} is no run folder with a checkpoint in it")
        return cls(path, yaml.safe_load((path / "config.yaml").read_text()))

    @property
    def summary(self) -> dict[str, Any] | None:
        """The results, or None if the run is not finished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def tested(self, protocol: str) -> dict[str, Any] | None:
        """What a test of photos gave, see `write_evaluation`; None if there was none. The summary tells of `center`."""
        path = self.path / f"{protocol}.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def evaluated_as_configured(self) -> bool:
        """Whether the test by the protocol of its config is there, which the summary has if that is `center`."""
        protocol = self.config["protocol"]
        return protocol == "center" or self.tested(protocol) is not None

    @property
    def finished(self) -> bool:
        """Whether all that its config asks for is there."""
        return self.summary is not None and self.evaluated_as_configured

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Takes the folder for this process, making it if need be; the lock falls with the process.

        What goes wrong meanwhile is written into error.txt. Raises LockedError if another process has it, and
        ValueError if it holds a run of another config.
        """
        with writing(self.path):
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+")  # noqa: SIM115
        os.register_at_fork(after_in_child=lock.close)  # workers may outlive a killed run, and must not keep its lock
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise LockedError(
                    f"{self.path} is being written by {lock.read() or 'another process'}: wait for it, or stop it"
                ) from None
            with writing(self.path):
                lock.truncate(0)
                os.write(lock.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
            self.plan()
            with writing(self.error):
                self.error.unlink(missing_ok=True)
            self.lock = lock
            try:
                yield
            except Exception as error:
                with suppress(FileNotFoundError):
                    self.check_still_there()
                    self.fail(str(error) or type(error).__name__)
                raise
            finally:
                self.lock = None

    def plan(self) -> None:
        """Makes the folder with its config.yaml. Raises ValueError if it holds a run of another config."""
        path = self.path / "config.yaml"
        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            atomic_write(path, lambda file: file.write(yaml.safe_dump(self.config, sort_keys=False).encode()))
        self.check_same_config()

    def fail(self, why: str) -> None:
        """Writes down why the run failed, for the next try and the report to see, if that can be written."""
        with suppress(OSError):
            atomic_write(self.error, lambda file: file.write(why.encode()))

    def check_same_config(self) -> None:
        """Raises ValueError if the folder holds a run of another config."""
        path = self.path / "config.yaml"
        if not path.exists():
            return
        changes = differences(identity(yaml.safe_load(path.read_text())), identity(self.config))
        if changes:
            raise ValueError(f"{self.path} holds a run of another config ({changes}): move that folder away")

    def log(self, row: dict[str, float]) -> None:
        """Appends one row of `COLUMNS` to metrics.csv; a column without a value stays empty."""
        assert set(row) <= set(COLUMNS), row
        self._append(self.metrics, COLUMNS, [row])

    def log_layers(self, iteration: int, gradients: dict[str, float], responses: dict[str, float]) -> None:
        """Appends a row for each layer to layers.csv."""
        lines = [(iteration, name, norm, responses.get(name)) for name, norm in gradients.items()]
        self._append(self.layers, LAYER_COLUMNS, [dict(zip(LAYER_COLUMNS, line, strict=True)) for line in lines])

    def _append(self, path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
        self.check_still_there()
        append(path, columns, rows)
        self.filled.add(path)

    def check_still_there(self) -> None:
        """Raises FileNotFoundError if the folder that this process has locked, or one with rows, is not there now.

        Else rows and checkpoints would begin in their middle, or go among those of another process.
        """
        if self.lock is None:
            return
        lock = self.path / "lock"
        kept = lock.exists() and os.path.samefile(lock, self.lock.fileno())
        gone = [path for path in self.filled if not path.exists()] if kept else [self.path]
        if gone:
            raise FileNotFoundError(
                f"{gone[0]} was removed or moved while the run went on: put it back, and the same command goes on; or "
                f"remove what is left of {self.path}, and it starts anew"
            )

    def flush_to_disk(self) -> None:
        """The rows that a checkpoint is about to count on. Raises FileNotFoundError if they are gone."""
        self.check_still_there()
        for path in self.filled:
            with writing(path), open(path) as file:
                os.fsync(file.fileno())

    @property
    def reached(self) -> int:
        """The iteration of the last row of metrics.csv."""
        rows = self.rows() if self.metrics.exists() else []
        return int(rows[-1]["iteration"]) if rows else 0

    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, each with the values that it has."""
        with open(self.metrics, newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]

    def truncate_to(self, iteration: int) -> None:
        """Drops the rows that a run going on from `iteration` will write again."""
        self.filled.clear()
        for path in (self.metrics, self.layers):
            if path.exists():
                lines = path.read_text().splitlines(keepends=True)
                kept = [x for x in lines[1:] if x.endswith("\n") and int(x.split(",")[0]) <= iteration]
                if kept:
                    whole = "".join([*lines[:1], *kept]).encode()
                    atomic_write(path, lambda file, whole=whole: file.write(whole))
                    self.filled.add(path)
                else:
                    path.unlink()

    def check_rows_complete(self, logged: Sequence[int]) -> None:
        """Raises ValueError if metrics.csv has not a row for each of the iterations `logged`."""
        there = [int(row["iteration"]) for row in self.rows()] if self.metrics.exists() else []
        if there != [*logged]:
            lost = sorted({*logged} ^ {*there}) or there
            raise ValueError(
                f"{self.metrics} does not fit its checkpoint (see iteration {lost[0]}): bring back the whole file, or "
                f"remove {self.path} to start the run anew"
            )

    def write_evaluation(self, test: dict[str, Any]) -> None:
        """Writes down what `src.evaluation.evaluator.evaluate` gave."""
        self._write_json(test["protocol"], test)

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the results, which makes the run a finished one."""
        self.check_still_there()
        self._write_json("summary", summary)

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        atomic_write(self.path / f"{name}.json", lambda file: file.write(json.dumps(values, indent=2).encode()))
