"""The directory of a run: its files, its lock, and whether the run in it is finished.

A directory is named by what the run is, so that the same command finds its own directory again:

    OUTPUT_DIR/<data>/<net>-<what differs from the defaults>-s<seed>/
        config.yaml            the resolved config
        metrics.csv            one row per logged iteration; errors in percent
        layers.csv             gradient and signals of each layer at the first iteration; gradient
                               and response at each evaluation
        checkpoints/           last.ckpt, and previous.ckpt before it
        summary.json           the results; written last, so its presence means finished
        detections.json        of detection: what was found in the test images, in COCO's form,
        precision_recall.csv   and the precision of each class at each recall, at an IoU of 0.5
        examples.png           of detection and segmentation: some test images with what was found
        10crop.json            and others such as multiscale.json, or refine+multiscale.json of
                               detection: results of those evaluation protocols
        error.txt              why the last attempt failed, if it did
        log.txt                the output of a run of a sweep
        wandb.json             which run of W&B it is, with logger=wandb
        loggers.json           what TensorBoard, MLflow and other loggers have received
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TextIO

import yaml

from src.runs.atomic_io import atomic_write, writing
from src.runs.config_files import (
    defaults_of,
    read_config,
    task_name,
    without_implied_targets,
)
from src.runs.csv_rows import append_rows, read_rows, truncate_rows
from src.runs.lock import exclusive_lock
from src.runs.naming import differences, run_key


class RunDir:
    """The directory of one run, whether it exists yet or not.

    Args:
        path: the directory.
        config: the resolved config of the run, with the `choices` it was composed of.
        defaults: the flat defaults of these choices; by default those of the files in `conf/`.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], defaults: dict[str, Any] | None = None
    ) -> None:
        self.path, self.config = path, config
        self.given_defaults = defaults
        self.metrics, self.layers = path / "metrics.csv", path / "layers.csv"
        self.last_checkpoint = path / "checkpoints" / "last.ckpt"
        self.error = path / "error.txt"
        self.lock: TextIO | None = None  # held by this process
        self.written_csvs: set[Path] = set()  # the CSV files that have rows

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the directory of an existing run, its config read from config.yaml.

        Raises:
            FileNotFoundError: there is no config.yaml.
            ValueError: the directory was written by version 0.1, or config.yaml holds no config.
        """
        if not (path / "config.yaml").exists():
            names = [other.parent.name for other in path.parent.glob("*/config.yaml")]
            # A name has a part such as bf16-mixed where the hardware does that.
            similar = get_close_matches(path.name, names, 1, cutoff=0.4)
            hint = f"; did you mean {path.parent / similar[0]}?" if similar else ""
            raise FileNotFoundError(
                f"{path} is not a run directory: there is no config.yaml in it{hint}"
            )
        return cls(path, read_config(path / "config.yaml"))

    @classmethod
    def open_trained(cls, path: Path) -> Self:
        """Return the directory of an existing run that has a checkpoint.

        Raises:
            FileNotFoundError: there is no config.yaml or no checkpoint.
            ValueError: as for `open`.
        """
        run_dir = cls.open(path)
        if not run_dir.last_checkpoint.exists():
            raise FileNotFoundError(f"{path} is not a run directory with a checkpoint")
        return run_dir

    @classmethod
    def open_finished(cls, path: Path) -> Self:
        """Return the directory of a finished run, whose checkpoint has the final weights.

        Raises:
            FileNotFoundError: there is no config.yaml or no checkpoint.
            ValueError: the run is not finished, or as for `open`.
        """
        run_dir = cls.open_trained(path)
        if run_dir.summary is None:
            raise ValueError(
                f"{path} is not finished: rerun the command that started it to resume it"
            )
        return run_dir

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The flat defaults of the config files that the run chose."""
        return self.given_defaults or defaults_of(self.config["choices"])

    @property
    def task(self) -> str:
        """What the run learns, such as `classification`."""
        return task_name(self.config["choices"])

    @property
    def key(self) -> dict[str, Any]:
        """The run key: what identifies the run."""
        return run_key(self.config, self.defaults)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The results, or None if the run is not finished."""
        return self.read_json("summary")

    def evaluation(self, protocol: str) -> dict[str, Any] | None:
        """Return the results of a protocol other than `center`; None if there are none."""
        return self.read_json(protocol)

    @property
    def evaluated_as_configured(self) -> bool:
        """Whether the results of the config's protocol exist; the summary has those of `center`."""
        protocol = self.config["protocol"]
        return protocol == "center" or self.evaluation(protocol) is not None

    @property
    def finished(self) -> bool:
        """Whether everything that the config asks for is done."""
        return self.summary is not None and self.evaluated_as_configured

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and reserve it for this process; the lock ends with the process.

        An exception of the block is recorded in error.txt.

        Raises:
            LockedError: another process has the lock.
            ValueError: the directory holds a run with another config.
        """
        with writing(self.path):
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path) as lock:
            # Not recorded if it fails: the directory then belongs to another run.
            self.create()
            with writing(self.error):
                self.error.unlink(missing_ok=True)
            self.lock = lock
            try:
                yield
            except Exception as error:
                # In a directory that was moved away, the error would be another run's.
                with suppress(FileNotFoundError):
                    self.check_still_there()
                    self.write_error(str(error) or type(error).__name__)
                raise
            finally:
                self.lock = None

    def create(self) -> None:
        """Create the directory with its config.yaml.

        Raises:
            ValueError: it holds a run with another config.
        """
        path = self.path / "config.yaml"
        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # the first config stays, also of a run that other devices resume
            text = yaml.safe_dump(without_implied_targets(self.config), sort_keys=False)
            atomic_write(path, lambda file: file.write(text.encode()))
        self.check_same_config()

    def check_same_config(self) -> None:
        """Check that the directory, if it exists, belongs to this run.

        Raises:
            ValueError: it holds a run with another config, or one of version 0.1.
        """
        path = self.path / "config.yaml"
        if path.exists():
            stored = run_key(read_config(path), self.defaults)
            self.check_same_key(stored, f"{self.path} holds a run")

    def check_same_key(self, stored: dict[str, Any], what: str) -> None:
        """Check a stored run key against the present one.

        Raises:
            ValueError: they differ; `what` begins the message.
        """
        changes = differences(stored, self.key, self.defaults)
        if changes:
            raise ValueError(f"{what} with another config ({changes}): move that directory away")

    def write_error(self, reason: str) -> None:
        """Record why the run failed, if that can be written."""
        with suppress(OSError):  # the reason itself matters more, and is raised
            atomic_write(self.error, lambda file: file.write(reason.encode()))

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

    def write_evaluation(self, results: dict[str, Any]) -> None:
        """Write the results of an evaluation protocol."""
        self.write_json(results["protocol"], results)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the results, which makes the run a finished one."""
        self.check_still_there()
        self.write_json("summary", summary)

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
