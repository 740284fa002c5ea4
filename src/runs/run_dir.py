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

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from src.runs.atomic_io import atomic_write, writing
from src.runs.config_files import (
    defaults_of,
    read_config,
    task_name,
    without_implied_targets,
)
from src.runs.lock import exclusive_lock
from src.runs.naming import differences, run_key
from src.runs.run_files import RunFiles


class RunDir(RunFiles):
    """The directory of one run, whether it exists yet or not.

    Args:
        path: the directory.
        config: the resolved config of the run, with the `choices` it was composed of.
        defaults: the flat defaults of these choices; by default those of the files in `conf/`.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], defaults: dict[str, Any] | None = None
    ) -> None:
        super().__init__(path)
        self.config, self.given_defaults = config, defaults

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

    def write_evaluation(self, results: dict[str, Any]) -> None:
        """Write the results of an evaluation protocol."""
        self.write_json(results["protocol"], results)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the results, which makes the run a finished one."""
        self.check_still_there()
        self.write_json("summary", summary)
