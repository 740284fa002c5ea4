"""Show a run in TensorBoard, MLflow or any other Lightning logger.

The Trainer is not given the logger: it would write a resumed run's iterations twice, against an x
axis of its own.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from src.runs.config_files import flatten
from src.runs.run_dir import RunDir
from src.training.callbacks.row_sender import RowSender

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from src.training.callbacks.checkpointing import Checkpointing

STATE = "loggers"  # of the JSON file that records what each logger has received


class ExternalLogger(RowSender):
    """One logger of the config; its values may contain `%run_dir%` and `%run_name%`.

    loggers.json records what it has received. A process that is killed between sending rows and
    writing that file sends these rows twice, with the same values.

    Args:
        name: the key of the logger in the config.
        run_dir: the directory of the run.
        checkpointing: the callback that saves checkpoints.
    """

    def __init__(self, name: str, run_dir: RunDir, checkpointing: "Checkpointing") -> None:
        super().__init__(run_dir, checkpointing)
        self.receiver = f"logger.{name}"
        self.name = name
        self.logger: Logger | None = None

    @property
    def is_open(self) -> bool:
        """Whether the logger takes rows."""
        return self.logger is not None

    def start(self) -> None:
        """Open the logger and send the rows that metrics.csv has."""
        with self.report_failure():
            state = (self.run_dir.read_json(STATE) or {}).get(self.name, {})
            options = fill_in(self.run_dir.config["logger"][self.name], self.run_dir)
            if "run_id" in state:  # which MLflow has generated
                options["run_id"] = state["run_id"]
            with without_prompts():
                self.logger = make_logger(options)
                if not state:
                    self.logger.log_hyperparams(flatten(self.run_dir.config))
            self.last_sent = state.get("last_sent", 0)
            self.send_covered_rows()

    def log_row(self, row: dict[str, float]) -> None:
        """Log a row, with the iteration as its step."""
        self._log_metrics(row, int(row["iteration"]))

    def _log_metrics(self, values: dict[str, float], iteration: int) -> None:
        assert self.logger is not None
        metrics = {key: value for key, value in values.items() if key != "iteration"}
        self.logger.log_metrics(metrics, iteration)

    def send_covered_rows(self) -> None:
        """Send rows, and record which ones."""
        super().send_covered_rows()
        if self.logger is None or self.failed:
            return
        with self.report_failure():
            self.logger.save()
            run_id = getattr(self.logger, "run_id", None)
            state = {"last_sent": self.last_sent} | ({"run_id": run_id} if run_id else {})
            states = self.run_dir.read_json(STATE) or {}
            self.run_dir.write_json(STATE, states | {self.name: state})

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Send what is left, with the results of a finished run, and close the logger."""
        self.send_rest()
        if self.logger is None or self.failed:
            return
        with self.report_failure():
            if summary := self.run_dir.summary:
                numbers = {k: v for k, v in summary.items() if isinstance(v, int | float)}
                results = {f"summary/{key}": value for key, value in numbers.items()}
                self._log_metrics(results, summary["iterations"])
            self.logger.save()
            # Not told of an interruption, after which the run resumes; Lightning turns Ctrl-C into
            # a SystemExit.
            if not isinstance(error, SystemExit | KeyboardInterrupt):
                self.logger.finalize("failed" if error else "success")


def fill_in(options: dict[str, Any], run_dir: RunDir) -> dict[str, Any]:
    """Return the arguments of a logger with its placeholders replaced."""
    places = {"%run_dir%": str(run_dir.path.absolute()), "%run_name%": run_dir.path.name}
    filled = dict(options)
    for placeholder, place in places.items():
        for key, value in filled.items():
            if isinstance(value, str):
                filled[key] = value.replace(placeholder, place)
    return filled


def make_logger(options: dict[str, Any]) -> "Logger":
    """Return the logger, or raise its own error in place of Hydra's."""
    try:
        return instantiate(options)
    except InstantiationException as error:
        raise error.__cause__ or error from None


@contextmanager
def without_prompts() -> Iterator[None]:
    """Make a prompt at the terminal, such as one for an API key, raise an error."""
    terminal = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = terminal
