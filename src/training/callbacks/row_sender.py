"""Send the rows of metrics.csv to where a run is shown as well, such as W&B or TensorBoard."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from pytorch_lightning import Trainer

from src.runs.run_dir import RunDir
from src.training.callbacks.base import RunCallback
from src.training.wandb_connection import first_line

if TYPE_CHECKING:
    from src.training.callbacks.checkpointing import Checkpointing


class RowSender(RunCallback):
    """Sends each row once, when a checkpoint covers it; a failure never ends the training.

    A killed run resumes from its last checkpoint and writes the rows after it again, so that those
    could differ from what was sent. As a context manager it ends with how the block ended.

    Comes before `Checkpointing`, so that a row is sent after the next iteration or evaluation.

    Args:
        run_dir: the directory of the run.
        checkpointing: the callback that saves checkpoints; None to send a finished run.

    Attributes:
        receiver: the name of what receives the rows.
        covered: the iteration up to which rows stay as they are.
        last_sent: the iteration of the last row that was sent, in this or an earlier process.
        failed: whether the receiver failed, after which nothing is sent.
    """

    receiver: str

    def __init__(self, run_dir: RunDir, checkpointing: "Checkpointing | None") -> None:
        self.run_dir, self.checkpointing = run_dir, checkpointing
        self.covered = 0 if checkpointing else math.inf
        self.last_sent = 0
        self.failed = False

    def __enter__(self) -> Self:
        """Begin."""
        return self

    @abstractmethod
    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Send what is left, and close the receiver."""

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Start, now that metrics.csv is truncated to where the run resumes."""
        self.covered = trainer.global_step
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Open the receiver unless it is open, and send the rows that metrics.csv has."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the receiver takes rows."""

    @abstractmethod
    def log_row(self, row: dict[str, float]) -> None:
        """Hand a row to the receiver."""

    def on_train_batch_end(self, *_: object) -> None:
        """Send the rows that a new checkpoint covers."""
        self.follow_checkpoint()

    def on_validation_end(self, *_: object) -> None:
        """Send the rows that a new checkpoint covers."""
        self.follow_checkpoint()

    def follow_checkpoint(self) -> None:
        """Send the rows that were covered by a checkpoint since the last call."""
        if self.checkpointing and self.checkpointing.saved_iteration > self.covered:
            self.covered = self.checkpointing.saved_iteration
            self.send_covered_rows()

    def send_rest(self) -> None:
        """Send what is left: of a finished run all rows, which no checkpoint needs to cover.

        The process that finishes a run may have trained no iteration of it, and not have started.
        """
        if self.run_dir.summary is None:
            self.follow_checkpoint()
            return
        self.covered = math.inf
        if not self.is_open and not self.failed:
            self.start()
        self.send_covered_rows()

    def send_covered_rows(self) -> None:
        """Send the rows of metrics.csv that a checkpoint covers and that were not sent."""
        for row in self.run_dir.rows():
            if row["iteration"] <= self.covered:
                self.send(row)

    def send(self, row: dict[str, float]) -> None:
        """Send a row of metrics.csv, unless it was sent.

        Not named `log`: Lightning sets that attribute of every callback to the LightningModule's.
        """
        if self.is_open and not self.failed and row["iteration"] > self.last_sent:
            with self.report_failure():
                self.log_row(row)
                self.last_sent = int(row["iteration"])

    @property
    def remedy(self) -> str:
        """What the user can do about a failure."""
        return f"{self.run_dir.metrics} has everything"

    @contextmanager
    def report_failure(self) -> Iterator[None]:
        """Print the first error of the receiver, and go on without it."""
        try:
            yield
        except Exception as error:
            if not self.failed:
                print(f"{self.receiver} failed ({first_line(error)}); {self.remedy}", flush=True)
            self.failed = True
