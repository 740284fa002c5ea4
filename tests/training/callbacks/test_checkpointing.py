"""When checkpoints are saved, and that each is loaded by its own run only."""

import pytest
import torch
from conftest import TINY
from pytorch_lightning import Callback
from run_comparison import load_checkpoint


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
