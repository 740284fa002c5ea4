"""When checkpoints are saved, and that each is loaded by its own run only."""

import os
import signal
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LambdaCallback
from run_comparison import assert_same_run, load_checkpoint

from src.training.callbacks import checkpointing
from src.training.callbacks.checkpointing import Checkpointing
from src.training.callbacks.preemption import Preemption
from src.training.intervals import Intervals


class Saves(Callback):
    """Collect the iterations at which a checkpoint is saved."""

    def __init__(self):
        self.iterations = []

    def on_save_checkpoint(self, trainer, *_):
        self.iterations.append(trainer.global_step)


def test_a_checkpoint_is_saved_at_its_interval_and_once_after_each_evaluation(tiny):
    saves = Saves()
    tiny(callbacks=[saves])
    assert saves.iterations == [2, 3, 4, 6, 8]


def test_the_last_weights_are_saved_whatever_the_intervals(tiny):
    saves = Saves()
    every = [f"recipe.{name}_every=100" for name in ("log", "eval", "checkpoint")]
    tiny(*every, "recipe.iterations=3", callbacks=[saves])
    assert saves.iterations == [3]


def test_checkpoints_are_at_least_so_many_seconds_apart_except_for_the_last(tiny, monkeypatch):
    """Each look at the clock is a second later; the first look is at the start of training."""
    monkeypatch.setattr(checkpointing, "time", SimpleNamespace(monotonic=count().__next__))
    saves = Saves()
    overrides = ["recipe.iterations=12", "recipe.eval_every=12", "recipe.log_every=1"]
    overrides += ["recipe.checkpoint_every=1", "checkpoint_seconds=3.5"]
    tiny(*overrides, callbacks=[saves])
    # Three looks are too early, the fourth saves; saving looks again.
    assert saves.iterations == [4, 8, 12]


def test_a_run_is_saved_when_a_signal_ends_it_however_short_it_was(tiny):
    saves = Saves()
    stop = LambdaCallback(on_train_batch_start=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        tiny("checkpoint_seconds=1000", callbacks=[saves, stop])
    assert saves.iterations == [1]


@pytest.mark.fault_injection("bits", "a run killed between two checkpoints that are far apart")
def test_a_run_killed_long_after_its_last_checkpoint_resumes_bit_exactly(
    tiny, tiny_until, tmp_path, monkeypatch, capsys
):
    undisturbed = tiny(f"output_dir={tmp_path}/undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "time", SimpleNamespace(monotonic=count().__next__))
        tiny_until(7, "checkpoint_seconds=2.5")  # saved after iteration 4, evaluated after 6
    run_dir = tiny()
    assert "resumes at iteration 4 of 8" in capsys.readouterr().out
    assert_same_run(run_dir, undisturbed)


@pytest.mark.parametrize("enough", [False, True])
def test_whether_it_is_time_to_save_is_decided_by_rank_0(find, enough):
    """The clocks of the ranks differ, and saving is a common work of all."""
    run_dir = find(*TINY)
    intervals = Intervals.of(run_dir.config)
    callback = Checkpointing(run_dir, intervals, Preemption(run_dir, intervals))
    saved = []
    trainer = SimpleNamespace(
        global_step=2,
        world_size=1,
        is_global_zero=False,
        strategy=SimpleNamespace(broadcast=lambda own: enough),
        save_checkpoint=lambda *_, **__: saved.append(True),
    )
    callback.on_train_batch_end(trainer, None)
    assert bool(saved) == enough


def test_a_checkpoint_records_its_run_its_images_and_the_world_size(tiny):
    run_dir = tiny()
    run = load_checkpoint(run_dir)["run"]
    assert run.keys() == {"key", "images", "world_size"}
    assert (run["key"], run["world_size"]) == (run_dir.key, 1)


@pytest.fixture
def resume_with(tiny, tiny_until, find):
    """Stop a run, change what its checkpoint records, and resume it."""

    def resume(**changes):
        tiny_until(5)
        path = find(*TINY, "trainer.precision=32-true").last_checkpoint
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["run"] |= changes
        torch.save(checkpoint, path)
        content = path.read_bytes()
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the tests look at the message)
            tiny()
        assert path.read_bytes() == content
        return str(error.value)

    return resume


@pytest.mark.fault_injection("fault", "a checkpoint of another config")
def test_a_checkpoint_of_another_config_is_refused(resume_with, find):
    key = find(*TINY, "trainer.precision=32-true").key
    message = resume_with(key=key | {"recipe.schedule.lr": 0.5})
    assert "holds a checkpoint of a run with another config" in message
    assert "(recipe.schedule.lr was 0.5, now 0.1): move that directory away" in message


@pytest.mark.fault_injection("fault", "other images than those that the run was started with")
def test_a_checkpoint_that_was_trained_on_other_images_is_refused(resume_with):
    assert "was trained on other images than the data has now" in resume_with(images="other")
