"""Measure a run's metrics and write them to metrics.csv."""

from pytorch_lightning import Trainer

from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.training.callbacks.base import RunCallback
from src.training.callbacks.nan_guard import NaNGuard
from src.training.intervals import Intervals


def metric_columns(task: type[Task] | Task) -> list[str]:
    """Return the columns of metrics.csv for a task."""
    stages = {"train": task.train_metrics, "val": task.eval_metrics, "test": task.eval_metrics}
    return ["iteration", "lr", *(f"{stage}/{m}" for stage, names in stages.items() for m in names)]


class Metrics(RunCallback):
    """Write a row at each logged iteration; at evaluations it has the errors of both splits.

    Training errors are those since the evaluation before, of augmented mini-batches while the
    weights moved.

    Args:
        run_dir: the directory of the run.
        intervals: when to log and to evaluate.
        split: the split evaluated during training, `val` or `test`.
        nan_guard: checks each measured loss.

    Attributes:
        row: the row of the latest logged iteration.
        written: the iteration of the last row in metrics.csv.
    """

    def __init__(
        self, run_dir: RunDir, intervals: Intervals, split: str, nan_guard: NaNGuard
    ) -> None:
        self.run_dir, self.intervals = run_dir, intervals
        self.split, self.nan_guard = split, nan_guard
        self.row: dict[str, float] = {}
        self.written = 0

    def on_train_start(self, trainer: Trainer, module: Task) -> None:
        """Bring the CSV files to the iteration at which the run resumes."""
        if trainer.is_global_zero:
            resumed_at = trainer.global_step
            self.run_dir.truncate(resumed_at)
            logged = [i for i in range(1, resumed_at + 1) if self.intervals.logs(i)]
            self.run_dir.check_rows(logged)

    def on_train_batch_end(self, trainer: Trainer, module: Task, *_: object) -> None:
        """Measure the training metrics, if they are due."""
        iteration = trainer.global_step
        if self.intervals.logs(iteration):
            self._measure(trainer, module, iteration)
        if self.intervals.is_last(iteration):
            # Lightning then evaluates even if eval_every does not divide the iterations.
            trainer.should_stop = True

    def _measure(self, trainer: Trainer, module: Task, iteration: int) -> None:
        recent = module.recent_train_metrics()
        self.nan_guard.check_loss(trainer, module, recent["loss"])
        self.row = {"iteration": iteration, "lr": module.lr, "train/loss": recent["loss"]}
        if not self.intervals.evaluates(iteration):
            self._write(trainer, module)
            return
        since_evaluation = module.pop_train_metrics()
        # The row's loss is that of the latest iterations, as in all rows.
        del since_evaluation["loss"]
        self.row |= {f"train/{name}": value for name, value in since_evaluation.items()}

    def on_validation_end(self, trainer: Trainer, module: Task) -> None:
        """Complete the row of the training metrics with those of the evaluation."""
        metrics = module.pop_eval_metrics()
        self.row |= {f"{self.split}/{name}": value for name, value in metrics.items()}
        module.on_evaluated(metrics)
        self._write(trainer, module)

    def _write(self, trainer: Trainer, module: Task) -> None:
        if trainer.is_global_zero:
            self.run_dir.append_metrics(metric_columns(module), self.row)
        self.written = int(self.row["iteration"])
