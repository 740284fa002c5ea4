"""Checkpoint files are valid or refused, and the one before the last is kept."""

import os

import pytest
import torch
from conftest import TINY
from run_comparison import assert_same_run, load_checkpoint

from src.training.checkpoint_io import (
    VerifiedCheckpointIO,
    is_valid_checkpoint,
    latest_valid_checkpoint,
)


def load(path):
    return torch.load(path, weights_only=True)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    """Change a tensor, which only a checksum can notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.fixture
def last(tmp_path):
    """The path of a last checkpoint, which three were saved to in turn."""
    path = tmp_path / "last.ckpt"
    for i in range(3):
        VerifiedCheckpointIO().save_checkpoint({"i": i, "weight": torch.zeros(100)}, path)
    return path


def test_each_checkpoint_keeps_the_one_before_it(last):
    previous = last.with_name("previous.ckpt")
    assert sorted(os.listdir(last.parent)) == ["last.ckpt", "previous.ckpt"]
    assert (load(last)["i"], load(previous)["i"]) == (2, 1)
    assert latest_valid_checkpoint(last) == last


def test_a_damaged_checkpoint_does_not_become_the_previous_one(last):
    flip_a_bit(last)
    VerifiedCheckpointIO().save_checkpoint({"i": 3}, last)
    assert (load(last)["i"], load(last.with_name("previous.ckpt"))["i"]) == (3, 1)


def test_a_checkpoint_that_cannot_be_read_back_does_not_replace_a_valid_one(last, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda _, file: file.write(b"something else"))
    with pytest.raises(OSError, match="new.ckpt cannot be read back as it was written: check the"):
        VerifiedCheckpointIO().save_checkpoint({"i": 3}, last)
    assert sorted(os.listdir(last.parent)) == ["last.ckpt", "previous.ckpt"]
    assert load(last)["i"] == 2


def test_a_full_disk_leaves_the_last_checkpoint_and_is_reported(last, monkeypatch):
    def fill(_, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device", file.name)

    monkeypatch.setattr(torch, "save", fill)
    message = (
        r"new.ckpt cannot be written \(No space left on device\): free some space on that disk"
    )
    with pytest.raises(OSError, match=message):
        VerifiedCheckpointIO().save_checkpoint({"i": 3}, last)
    assert sorted(os.listdir(last.parent)) == ["last.ckpt", "previous.ckpt"]
    assert load(last)["i"] == 2


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, os.remove])
def test_the_previous_checkpoint_stands_in_for_a_damaged_or_missing_one(last, damage, capsys):
    damage(last)
    assert not last.exists() or not is_valid_checkpoint(last)
    assert latest_valid_checkpoint(last) == last.with_name("previous.ckpt")
    message = f"{last} is damaged and skipped\n"
    assert capsys.readouterr().out == ("" if damage is os.remove else message)


def test_without_a_checkpoint_there_is_none_to_resume_from(tmp_path):
    assert latest_valid_checkpoint(tmp_path / "last.ckpt") is None


@pytest.mark.fault_injection("fault", "a truncated or damaged checkpoint")
@pytest.mark.parametrize("damage", [truncate, os.remove])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    tiny, tiny_until, find, tmp_path, damage
):
    undisturbed = tiny(f"output_dir={tmp_path}/undisturbed")
    tiny_until(7)
    damage(find(*TINY, "trainer.precision=32-true").last_checkpoint)
    assert_same_run(undisturbed, tiny())


@pytest.mark.fault_injection("fault", "all checkpoints damaged")
def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_from_scratch(tiny):
    run_dir = tiny()
    (run_dir.path / "summary.json").unlink()
    for path in run_dir.last_checkpoint.parent.iterdir():
        truncate(path)
    with pytest.raises(ValueError, match="no checkpoint in .*checkpoints can be read: remove that"):
        tiny()


def test_everything_that_a_run_saves_is_plain_data(tiny):
    run_dir = tiny()
    assert {*load_checkpoint(run_dir)} >= {"state_dict", "optimizer_states", "loops", "training"}
