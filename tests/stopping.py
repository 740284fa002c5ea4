"""Callbacks that kill a run in this process at a chosen place."""

from typing import Any

from conftest import Killed
from pytorch_lightning import Callback, LightningModule, Trainer


class KillInHook(Callback):
    """Kill a run in a hook of one iteration.

    Args:
        hook: the name of the hook.
        iteration: the number of finished iterations.
        before: the callback of this type is not called any more; None: after all callbacks.
    """

    def __init__(self, hook: str, iteration: int, before: type[Callback] | None = None) -> None:
        self.before = before

        def kill(trainer: Trainer, *_: object) -> None:
            if trainer.global_step == iteration:
                raise Killed

        setattr(self, hook, kill)

    def setup(self, trainer: Trainer, *_: object, **__: object) -> None:
        """Move to the place among the run's own callbacks."""
        if self.before:
            trainer.callbacks.remove(self)
            types = [type(callback) for callback in trainer.callbacks]
            trainer.callbacks.insert(types.index(self.before), self)


class KillInForward(Callback):
    """Kill a run in one of the forward passes after a given number of iterations has started."""

    def __init__(self, started: int, passes: int) -> None:
        self.started, self.passes = started, passes

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.started:
            module.net.register_forward_pre_hook(self.count)

    def count(self, *_: object) -> None:
        self.passes -= 1
        if self.passes < 0:
            raise Killed
