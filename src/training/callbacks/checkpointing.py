"""Save checkpoints, and check that one belongs to the run that loads it."""

from typing import Any

from pytorch_lightning import Trainer

from src.runs.run_dir import RunDir
from src.tasks.classification import Classifier
from src.training.callbacks.base import RunCallback
from src.training.callbacks.preemption import Preemption
from src.training.intervals import Intervals


class Checkpointing(RunCallback):
    """Save after evaluations, every `checkpoint_every` iterations, and when a signal ends the run.

    Comes last among the callbacks: everything that belongs to an iteration is written before its
    checkpoint. Lightning's ModelCheckpoint is not used: its `last.ckpt` is not always the last, and
    it does not save at the end.

    Attributes:
        previous_world_size: the world size that the loaded checkpoint was saved with; None without
            one.
    """

    def __init__(self, run_dir: RunDir, intervals: Intervals, preemption: Preemption) -> None:
        self.run_dir, self.intervals, self.preemption = run_dir, intervals, preemption
        self.previous_world_size: int | None = None

    def on_train_batch_end(self, trainer: Trainer, module: Classifier, *_: object) -> None:
        """Save if it is time, unless an evaluation follows, which saves after it."""
        iteration = trainer.global_step
        due = self.preemption.agreed_signal or self.intervals.saves(iteration)
        if due and not self.intervals.evaluates(iteration):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, module: Classifier) -> None:
        """Save after an evaluation."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.run_dir.sync_csvs()  # a checkpoint relies on the rows before it
        trainer.save_checkpoint(self.run_dir.last_checkpoint, weights_only=False)

    def on_save_checkpoint(
        self, trainer: Trainer, module: Classifier, checkpoint: dict[str, Any]
    ) -> None:
        """Record which run, which images and how many processes the checkpoint comes from."""
        checkpoint["run"] = {
            "key": self.run_dir.key,
            "images": trainer.datamodule.fingerprint,  # type: ignore[attr-defined]
            "world_size": trainer.world_size,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, module: Classifier, checkpoint: dict[str, Any]
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
