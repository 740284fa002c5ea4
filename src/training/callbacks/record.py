"""What is written down while a run goes on: its metrics, its checkpoints, its progress bar."""

import math
import time
from contextlib import ExitStack
from typing import Any

from pytorch_lightning import Callback, Trainer
from tqdm import tqdm

from src.runs.naming import differences, identity
from src.runs.run_dir import RunDir
from src.tasks.classification import Classifier
from src.training.callbacks.layer_stats import gradient_norms, record_responses
from src.training.callbacks.precise_bn import recompute_bn_statistics
from src.training.callbacks.wandb import WandbRun
from src.training.distributed import shorten_timeout


class Record(Callback):
    """Writes metrics.csv and the checkpoints of a run folder, and measures the time.

    Every `log_every` iterations the training loss and error since the last time are taken from the device. Every
    `eval_every` iterations, and after the last, a row has the training errors since the evaluation before (over
    augmented mini-batches, while the weights moved) and those of the tested split, and layers.csv has the gradient
    and the response of each layer. A checkpoint follows each evaluation, and comes every `checkpoint_every` iterations.

    Raises FloatingPointError when the loss or a weight is not finite; no checkpoint is written of that.
    """

    def __init__(self, folder: RunDir, recipe: dict[str, Any], split: str) -> None:
        self.folder, self.split, self.iterations = folder, split, recipe["iterations"]
        self.log_every, self.eval_every = recipe["log_every"], recipe["eval_every"]
        self.checkpoint_every, self.precise_bn_batches = recipe["checkpoint_every"], recipe["precise_bn_batches"]
        if self.precise_bn_batches < 0:
            raise ValueError(f"recipe.precise_bn_batches={self.precise_bn_batches} must be at least 0")
        self.row: dict[str, float] = {}
        self.train_seconds = self.eval_seconds = 0.0
        self.world_before: int | None = None  # devices that the checkpoint was made on
        self.stopping = 0  # the signal that ends the run after this iteration; see src/preemption.py
        self.bar: tqdm | None = None
        self.board: WandbRun | None = None  # where W&B shows the rows, too

    def on_train_start(self, trainer: Trainer, module: Classifier) -> None:
        shorten_timeout(trainer)
        if trainer.is_global_zero:
            self.folder.truncate_to(trainer.global_step)
            self.folder.check_rows_complete([i for i in range(1, trainer.global_step + 1) if self._logs(i)])
            if self.board:
                self.board.start()
            start = f"goes on at iteration {trainer.global_step} of" if trainer.global_step else "trains for"
            print(f"{self.folder.path} {start} {self.iterations} iterations in {self._how(trainer)}", flush=True)
        self.bar = tqdm(
            desc=self.folder.path.name,
            total=self.iterations,
            initial=trainer.global_step,
            unit="it",
            disable=None if trainer.is_global_zero else True,  # None: where the output is no terminal
        )
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Classifier, _: Any, __: Any, batch_idx: int) -> None:
        iteration = batch_idx + 1
        self.bar.update()
        evaluation = self._evaluates(iteration)
        if self._logs(iteration):
            self._log_training(trainer, module, evaluation)
        if iteration == self.iterations:
            if self.precise_bn_batches:
                self._lap("train_seconds")
                recompute_bn_statistics(trainer, module.net, self.precise_bn_batches)
                self._lap("eval_seconds")
            trainer.should_stop = True  # Lightning evaluates before it stops, also off the beat of eval_every.
        if (self.stopping or iteration % self.checkpoint_every == 0) and not evaluation:
            self._save(trainer, module)

    def _evaluates(self, iteration: int) -> bool:
        return iteration % self.eval_every == 0 or iteration == self.iterations

    def _logs(self, iteration: int) -> bool:
        return iteration % self.log_every == 0 or self._evaluates(iteration)

    def _log_training(self, trainer: Trainer, module: Classifier, evaluation: bool) -> None:
        latest = module.measure()
        self.row = {"iteration": trainer.global_step, "lr": module.rate, "train/loss": latest["loss"]}
        if not math.isfinite(latest["loss"]):
            raise FloatingPointError(f"the training loss is not finite at {self._where(trainer)}")
        self.bar.set_postfix_str(f"train error {latest['error']:.1f}%")
        if evaluation:
            errors = module.pop_train_errors()
            self.row |= {"train/error": errors["error"], "train/error_top5": errors["error_top5"]}
        elif trainer.is_global_zero:
            self._write()

    def on_validation_start(self, trainer: Trainer, module: Classifier) -> None:
        self._lap("train_seconds")
        self.gradients, self.measuring = gradient_norms(module.net), ExitStack()
        self.responses = self.measuring.enter_context(record_responses(module.net))

    def on_validation_batch_end(self, *_: object) -> None:
        self.measuring.close()  # the first batch is enough

    def on_validation_end(self, trainer: Trainer, module: Classifier) -> None:
        self.measuring.close()  # on a process that could read none of its images
        errors = module.pop_eval_errors()
        self.row |= {f"{self.split}/{name}": value for name, value in errors.items()}
        module.schedule.on_eval_error(errors["error"])
        self._lap("eval_seconds")
        if trainer.is_global_zero:
            self._write()
            row = self.row
            self.folder.log_layers(row["iteration"], self.gradients, self.responses)
            line = f"train {row['train/error']:.2f}%  {self.split} {row[f'{self.split}/error']:.2f}%"
            tqdm.write(f"{self.folder.path.name}  iteration {row['iteration']}  error: {line}")
        self._save(trainer, module)

    def _write(self) -> None:
        self.folder.log(self.row)
        if self.board:
            self.board.log(self.row)

    def on_train_end(self, trainer: Trainer, module: Classifier) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, module: Classifier, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()

    def _how(self, trainer: Trainer) -> str:
        """Precision and devices, in words; batch norm sees what one device has, unless it is synchronised."""
        world, batch = trainer.world_size, trainer.datamodule.batch_size
        how = trainer.precision
        if world > 1:
            seen = batch if self.folder.config["trainer"]["sync_batchnorm"] else batch // world
            how += f" on {world} devices, batch norm over {seen} images"
        return how if self.world_before in (None, world) else f"{how} ({self.world_before} devices before)"

    def _save(self, trainer: Trainer, module: Classifier) -> None:
        if not all(tensor.isfinite().all() for tensor in module.net.state_dict().values()):
            raise FloatingPointError(f"a weight is not finite at {self._where(trainer)}")
        if trainer.is_global_zero:
            self.folder.flush_to_disk()
        trainer.save_checkpoint(self.folder.last_checkpoint, weights_only=False)

    def _where(self, trainer: Trainer) -> str:
        kept, rate = self.folder.last_checkpoint, trainer.lightning_module.rate
        good = f"the last good checkpoint is {kept}" if kept.exists() else "there was no checkpoint yet"
        return f"iteration {trainer.global_step}, rate {rate:g}: try a lower recipe.schedule.lr ({good})"

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        setattr(self, name, getattr(self, name) + now - self.since)
        self.since = now

    def on_save_checkpoint(self, trainer: Trainer, module: Classifier, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {"config": identity(self.folder.config), "images": trainer.datamodule.fingerprint}
        checkpoint["run"]["devices"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, module: Classifier, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError if the checkpoint is of another config or was trained on other images."""
        run = checkpoint["run"]
        self.world_before = run["devices"]
        changes = differences(run["config"], identity(self.folder.config))
        if changes:
            raise ValueError(
                f"the checkpoint in {self.folder.path} is of another config ({changes}): move that folder away"
            )
        if run["images"] != trainer.datamodule.fingerprint:
            raise ValueError(
                f"{self.folder.path} was trained on other images than those that are there now: bring back those, or "
                "start anew with another output_dir=FOLDER"
            )

    def state_dict(self) -> dict[str, float]:
        self._lap("train_seconds")
        return {"train_seconds": self.train_seconds, "eval_seconds": self.eval_seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.train_seconds, self.eval_seconds = state["train_seconds"], state["eval_seconds"]
