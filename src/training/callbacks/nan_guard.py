"""End a run whose loss or weights are not finite, before they reach a checkpoint."""

import math
from typing import Any

import torch
from pytorch_lightning import Trainer

from src.runs.run_dir import RunDir
from src.tasks.base import Task
from src.training.callbacks.base import RunCallback


class NaNGuard(RunCallback):
    """Check the loss whenever it is measured, and the weights before each checkpoint."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir

    def check_loss(self, trainer: Trainer, module: Task, loss: float) -> None:
        """Check the training loss, the same on all ranks.

        Raises:
            FloatingPointError: it is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is not finite {self._advice(trainer, module)}"
            )

    def on_save_checkpoint(
        self, trainer: Trainer, module: Task, checkpoint: dict[str, Any]
    ) -> None:
        """Check the weights and the batch norm statistics.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        # One check for all tensors: checking each would wait for the GPU each time.
        finite = [tensor.isfinite().all() for tensor in module.state_dict().values()]
        if not torch.stack(finite).all():
            raise FloatingPointError(f"a weight is not finite {self._advice(trainer, module)}")

    def _advice(self, trainer: Trainer, module: Task) -> str:
        last, lr = self.run_dir.last_checkpoint, module.lr
        saved = (
            f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        )
        where = f"at iteration {trainer.global_step}, learning rate {lr:g}"
        return f"{where}: try a lower recipe.schedule.lr ({saved})"
