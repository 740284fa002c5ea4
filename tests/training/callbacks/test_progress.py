"""What a run prints, and its progress bar."""

import re

import pytest
from conftest import Killed
from stopping import KillInHook

from src.runs.describe import describe_results
from src.training.callbacks.progress import Progress


def test_a_run_says_where_it_starts_how_each_evaluation_ends_and_its_results(tiny, capsys):
    run_dir = tiny()
    start, *evaluations, end = capsys.readouterr().out.splitlines()
    assert start == f"{run_dir.path} trains for 8 iterations in 32-true"
    rows = [row for row in run_dir.rows() if "test/error" in row]
    assert evaluations == [
        f"{run_dir.path.name}  iteration {row['iteration']:.0f}  error: "
        f"train {row['train/error']:.2f}%  test {row['test/error']:.2f}%"
        for row in rows
    ]
    assert end == f"{run_dir.path} finished: {describe_results(run_dir)}"


def test_a_resumed_run_says_from_which_iteration(tiny, tiny_until, capsys):
    tiny_until(5)
    capsys.readouterr()
    tiny()
    start = capsys.readouterr().out.splitlines()[0]
    assert start.endswith(" resumes at iteration 4 of 8 iterations in 32-true")


def test_a_run_with_held_out_images_prints_their_error(tiny, capsys):
    tiny("data.val_images=100")
    assert len(re.findall(r"error: train .*%  val .*%\n", capsys.readouterr().out)) == 3


class KeepBar(KillInHook):
    """Keep the progress bar of a run that is killed."""

    def on_train_start(self, trainer, *_):
        (self.bar,) = [cb.bar for cb in trainer.callbacks if isinstance(cb, Progress)]


def test_the_bar_shows_the_training_error_and_is_closed_when_the_run_ends(tiny):
    keep = KeepBar("on_train_batch_start", 4)
    keep.bar = None
    with pytest.raises(Killed):
        tiny(callbacks=[keep])
    assert (keep.bar.total, keep.bar.disable) == (8, True)  # off, as this is no terminal
