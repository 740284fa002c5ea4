import pytest
from pytorch_lightning import Callback

from src.training.callbacks.base import ITERATION_HOOKS, RunCallback
from src.training.callbacks.metrics import Metrics
from src.training.callbacks.stopwatch import Stopwatch


class Counter(RunCallback):
    def on_train_batch_end(self, *_):
        self.called = True


@pytest.mark.parametrize("hook", ITERATION_HOOKS)
def test_lightning_has_each_hook_of_an_iteration(hook):
    assert callable(getattr(Callback, hook))


@pytest.mark.parametrize("kind", [Counter, Metrics])
def test_a_callback_keeps_the_hooks_that_it_has_and_no_others(kind):
    kept = [hook for hook in ITERATION_HOOKS if callable(getattr(kind, hook))]
    assert kept == ["on_train_batch_end"]


def test_a_callback_without_a_hook_of_an_iteration_keeps_none():
    assert not any(callable(getattr(Stopwatch, hook)) for hook in ITERATION_HOOKS)
    assert callable(Stopwatch.on_train_start)
