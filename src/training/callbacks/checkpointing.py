"""Save checkpoints, and check that one belongs to the run that loads it."""

import time
from typing import Any

from pytorch_lightning import Trainer

from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.training.callbacks.base import RunCallback
from src.training.callbacks.preemption import Preemption
from src.training.distributed import rank_zero_works
from src.training.intervals import Intervals


class Checkpointing(RunCallback):
    """Save after evaluations and every `checkpoint_every` iterations, but not too often.

    On a GPU a checkpoint can take as long as a hundred iterations, so `checkpoint_seconds` must
    have passed since the one before. The last iteration, and the one at which a signal ends the
    run, are always saved.

    Comes after all callbacks that write files, so everything that belongs to an iteration is
    written before its checkpoint. Lightning's ModelCheckpoint is not used: its `last.ckpt` is not
    always the last, and it does not save at the end.

    Attributes:
        previous_world_size: the world size that the loaded checkpoint was saved with; None without
            one.
        saved_iteration: the iteration of the last checkpoint of this process, 0 before.
    """

    def __init__(self, run_dir: RunDir, intervals: Intervals, preemption: Preemption) -> None:
        self.run_dir, self.intervals, self.preemption = run_dir, intervals, preemption
        self.previous_world_size: int | None = None
        self.saved_iteration = 0
        self.saved_at = time.monotonic()

    def on_train_start(self, *_: object) -> None:
        """Count the time between checkpoints from here."""
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Task, *_: object) -> None:
        """Save if it is time, unless an evaluation follows."""
        if not self.intervals.evaluates(trainer.global_step):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, module: Task) -> None:
        """Save after an evaluation if it is time."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        iteration = trainer.global_step
        must = self.preemption.agreed_signal or self.intervals.is_last(iteration)
        if not must and not self.intervals.may_save(iteration):
            return
        # After an evaluation rank 0 may just have tried to reach W&B.
        with rank_zero_works(trainer):
            if must or self._enough_time_passed(trainer):
                if trainer.is_global_zero:
                    self.run_dir.sync_csvs()  # a checkpoint relies on the rows before it
                trainer.save_checkpoint(self.run_dir.last_checkpoint, weights_only=False)
                self.saved_at, self.saved_iteration = time.monotonic(), iteration

    def _enough_time_passed(self, trainer: Trainer) -> bool:
        """Return the same answer on all ranks, whose clocks differ."""
        enough = time.monotonic() - self.saved_at >= self.intervals.checkpoint_seconds
        return trainer.strategy.broadcast(enough)

    def on_save_checkpoint(
        self, trainer: Trainer, module: Task, checkpoint: dict[str, Any]
    ) -> None:
        """Record which run, which images and how many processes the checkpoint comes from."""
        checkpoint["run"] = {
            "key": self.run_dir.key,
            "images": trainer.datamodule.fingerprint,  # type: ignore[attr-defined]
            "world_size": trainer.world_size,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, module: Task, checkpoint: dict[str, Any]
    ) -> None:
        """Check that the checkpoint belongs to this run.

        Raises:
            ValueError: it has another config, or was trained on other images.
        """
        run = checkpoint["run"]
        self.previous_world_size = run["world_size"]
        self.run_dir.check_same_key(run["key"], f"{self.run_dir.path} holds a checkpoint of a run")
        if run["images"] != trainer.datamodule.fingerprint:  # type: ignore[attr-defined]
            raise ValueError(
                f"{self.run_dir.path} was trained on other images than the data has now: restore "
                "those, or start from scratch in another output_dir=DIRECTORY"
            )
