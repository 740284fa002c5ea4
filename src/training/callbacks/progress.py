"""Show how far a run is: a progress bar, a line at the start and one at each evaluation."""

from pytorch_lightning import Trainer
from tqdm import tqdm

from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.training.callbacks.base import RunCallback
from src.training.callbacks.checkpointing import Checkpointing
from src.training.callbacks.metrics import Metrics


class Progress(RunCallback):
    """Print what happens in a run; the bar is shown where the output is a terminal."""

    def __init__(self, run_dir: RunDir, metrics: Metrics, checkpointing: Checkpointing) -> None:
        self.run_dir, self.metrics, self.checkpointing = run_dir, metrics, checkpointing
        self.bar = tqdm(disable=True)

    def on_train_start(self, trainer: Trainer, module: Task) -> None:
        """Say where the run starts and how, and open the bar."""
        iterations, first = self.metrics.intervals.iterations, trainer.global_step
        if trainer.is_global_zero:
            start = f"resumes at iteration {first} of" if first else "trains for"
            how = self._describe_execution(trainer)
            print(f"{self.run_dir.path} {start} {iterations} iterations in {how}", flush=True)
        self.bar = tqdm(
            desc=self.run_dir.path.name,
            total=iterations,
            initial=first,
            unit="it",
            disable=None if trainer.is_global_zero else True,  # None: off unless in a terminal
        )

    def _describe_execution(self, trainer: Trainer) -> str:
        """Return the precision, the world size and the images one batch norm sees."""
        world_size, batch = trainer.world_size, self.run_dir.config["recipe"]["batch_size"]
        text = str(trainer.precision)
        if world_size > 1:
            synchronized = self.run_dir.config["trainer"]["sync_batchnorm"]
            seen = batch if synchronized else batch // world_size
            text += f", world size {world_size}, batch norm over {seen} images"
        before = self.checkpointing.previous_world_size
        return text if before in (None, world_size) else f"{text} (world size {before} before)"

    def on_train_batch_end(self, trainer: Trainer, module: Task, *_: object) -> None:
        """Advance the bar, with the latest training metrics."""
        self.bar.update()
        if self.metrics.intervals.logs(trainer.global_step):
            self.bar.set_postfix_str(module.describe_training())

    def on_validation_end(self, trainer: Trainer, module: Task) -> None:
        """Print the metrics of an evaluation."""
        if trainer.is_global_zero:
            row = self.metrics.row
            result = module.describe_evaluation(row, self.metrics.split)
            tqdm.write(f"{self.run_dir.path.name}  iteration {row['iteration']}  {result}")

    def on_train_end(self, *_: object) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(self, *_: object) -> None:
        """Close the bar."""
        self.bar.close()
