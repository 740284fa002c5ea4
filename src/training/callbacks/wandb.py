"""Show a run in Weights & Biases (W&B), as a view: every result is taken from the run directory.

wandb.json records which run of W&B it is, so it stays one run however often it is interrupted,
resumed or sent. Without a key or a network W&B writes into `wandb` in the run directory, to be sent
later. Lightning's WandbLogger is not used: it takes over an existing run, reports no exit code and
has no fallback.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning import Trainer

from src.runs.run_dir import RunDir
from src.runs.wandb_identity import WandbIdentity, is_agent_trial, new_id, wandb_options
from src.training.callbacks.preemption import Interrupted
from src.training.callbacks.row_sender import RowSender
from src.training.wandb_connection import (
    AS_REQUESTED,
    choose_mode,
    default_entity,
    first_line,
    server_answers,
)
from src.training.wandb_init import init_run

if TYPE_CHECKING:
    import wandb

    from src.training.callbacks.checkpointing import Checkpointing

RETRY_INTERVAL = 300  # seconds between two attempts to reach a server that did not answer
KILLED = 255  # the exit code that W&B shows as killed; it shows any other but 0 as failed


def exit_code(error: BaseException | None) -> int:
    """Return the exit code that tells W&B how a run ended."""
    # Lightning turns Ctrl-C into a SystemExit.
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    ):
        return KILLED
    # An agent stops a trial that its sweep no longer needs: that is not a failure.
    stopped_by_agent = isinstance(error, Interrupted) and is_agent_trial()
    return 0 if error is None or stopped_by_agent else 1


class WandbRun(RowSender):
    """One W&B run for one run directory.

    As a context manager it closes the W&B run, with the results and with how the block ended.

    Args:
        run_dir: the directory of the run.
        checkpointing: the callback that saves checkpoints; None to send a finished run.
        depth: the depth of the net; by default that of the net being trained.
        project, entity: of W&B; by default those of wandb.json, or of the run's config.
    """

    receiver = "W&B"

    def __init__(
        self,
        run_dir: RunDir,
        checkpointing: "Checkpointing | None" = None,
        depth: int | None = None,
        project: str | None = None,
        entity: str | None = None,
    ) -> None:
        super().__init__(run_dir, checkpointing)
        self.depth, self.project, self.entity = depth, project, entity
        self.run: wandb.Run | None = None
        self.retry_at: float | None = None  # None: not to be tried again

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Close the W&B run."""
        preempted = isinstance(error, Interrupted) and not is_agent_trial()
        self.finish(exit_code(error), preempted)

    @property
    def is_open(self) -> bool:
        """Whether the W&B run takes rows."""
        return self.run is not None

    @property
    def remedy(self) -> str:
        """What the user can do about a failure."""
        return (
            f"{super().remedy}, and python -m src.report --wandb {self.run_dir.path} sends it when "
            "the run is finished"
        )

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Start the W&B run."""
        self.depth = module.depth
        super().on_train_start(trainer, module)

    def on_validation_end(self, *_: object) -> None:
        """Send rows, and try again to reach a server that did not answer."""
        if self.retry_at is not None and time.monotonic() >= self.retry_at:
            with self.report_failure():
                self._retry()
        super().on_validation_end()

    def start(self) -> None:
        """Start or resume the W&B run, with the rows that metrics.csv has."""
        if self.run is None and not self.failed:
            with self.report_failure():
                self._start()

    def _start(self) -> None:
        mode, reason = choose_mode()
        if mode == "disabled":
            return
        # An earlier attempt's offline files hold a part of what is sent now: sent as well, it would
        # be there twice.
        self._remove_parts("offline-run-*")
        self.identity = WandbIdentity.of(self.run_dir, self.project, self.entity)
        self.identity.write(self.run_dir)
        run: wandb.Run | None = None
        if mode == "online":
            run, reason = self._start_online()
        refused = run is None and reason != AS_REQUESTED
        self.retry_at = time.monotonic() + RETRY_INTERVAL if refused else None
        self.run = run = run or self._start_offline(reason)
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        self.last_sent = run.summary.get("iteration", 0) if run.resumed else 0
        self.send_covered_rows()

    def _retry(self) -> None:
        """Replace the offline run by one on the server, if that answers by now."""
        self.retry_at = time.monotonic() + RETRY_INTERVAL
        server_answers.cache_clear()
        if self.run is not None and choose_mode()[0] == "online":
            self.run.finish()  # the id is in use until then
            self._start()

    def _start_online(self) -> "tuple[wandb.Run | None, str]":
        """Return the run, or None and the reason if the server refuses it, as for its key."""
        import wandb

        try:
            if self.identity.entity is None:
                self.identity = replace(self.identity, entity=default_entity())
            try:
                run = self._init("online")
            except wandb.Error as error:
                # The server refuses the id of a run that was deleted there, permanently.
                if "HTTP 409" not in str(error) or is_agent_trial():
                    raise
                wandb.teardown()
                run = self._init_again()
        except Exception as error:
            wandb.teardown()  # otherwise the next init reports that the run's id is in use
            return None, first_line(error)
        self.identity = replace(self.identity, entity=run.entity)
        self.identity.write(self.run_dir)
        print(f"{self.run_dir.path} is shown at {run.url}", flush=True)
        return run, ""

    def _init_again(self) -> "wandb.Run":
        self.identity = replace(self.identity, id=new_id(self.run_dir))
        run = self._init("online")
        print(
            f"W&B no longer has the run of {self.run_dir.path}, which was deleted there: it is sent"
            f" as a new one, {self.identity.id}",
            flush=True,
        )
        return run

    def _start_offline(self, reason: str) -> "wandb.Run":
        run = self._init("offline")
        files = self.run_dir.path / "wandb" / Path(run.dir).parent.name
        print(
            f"W&B is offline ({reason}); when the run is finished, python -m src.report --wandb "
            f"{self.run_dir.path} sends it, or, for the first time only, wandb sync {files}",
            flush=True,
        )
        return run

    def _init(self, mode: Literal["online", "offline"]) -> "wandb.Run":
        # A finished run has nothing to measure on the machine that sends it.
        measure = self.checkpointing is not None and wandb_options(self.run_dir)["system_metrics"]
        return init_run(self.run_dir, self.identity, self.depth, mode, measure=measure)

    def log_row(self, row: dict[str, float]) -> None:
        """Log a row; its iteration is an integer, as an x axis has it."""
        assert self.run is not None
        self.run.log({**row, "iteration": int(row["iteration"])})

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Close the W&B run, with the results if there are any."""
        self.start()  # a run that failed before training shows at least how it ended
        self.send_rest()
        if self.run is not None:
            with self.report_failure():
                results = self.run_dir.summary or {}
                known = {key: value for key, value in results.items() if value is not None}
                self.run.summary.update(known)
                self._send_examples()
                if preempted:
                    self.run.mark_preempting()
                own_part = Path(self.run.dir).parent.name
                self.run.finish(exit_code=exit_code)
                if not self.run.offline:  # everything was sent: earlier parts are no longer needed
                    self._remove_parts("*run-*", keep=own_part)

    def _send_examples(self) -> None:
        """Show the picture of test images that a detector or segmenter keeps, if there is one."""
        import wandb

        path = self.run_dir.path / "examples.png"
        if self.run is not None and path.exists():
            self.run.summary["examples"] = wandb.Image(str(path))

    def _remove_parts(self, pattern: str, keep: str = "") -> None:
        for part in self.run_dir.path.glob(f"wandb/{pattern}"):
            if part.name != keep and not part.is_symlink():  # such as latest-run
                shutil.rmtree(part)


def send_finished_run(
    run_dir: RunDir, project: str | None = None, entity: str | None = None
) -> None:
    """Send a finished run; rows that W&B has are not sent again.

    Args:
        run_dir: the directory of the run.
        project: in place of that of wandb.json, or of the run's config.
        entity: in place of that of wandb.json, or of the run's config.
    """
    summary = run_dir.summary
    assert summary is not None, run_dir.path
    # Opening and closing it sends all that is in the run directory.
    with WandbRun(run_dir, depth=summary["depth"], project=project, entity=entity):
        pass
