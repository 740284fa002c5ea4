import os

import pytest
import torch
from conftest import TINY
from test_train import assert_same_run, weights

from src.data.digits import Digits
from src.training.checkpoint_io import (
    VerifiedCheckpointIO,
    is_valid_checkpoint,
    latest_valid_checkpoint,
)


def test_each_checkpoint_leaves_the_one_before_it(tmp_path):
    for i in range(3):
        VerifiedCheckpointIO().save_checkpoint({"i": i}, tmp_path / "last.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]
    assert [
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["i"]
        for name in ("last", "previous")
    ] == [2, 1]
    assert latest_valid_checkpoint(tmp_path / "last.ckpt") == tmp_path / "last.ckpt"


def test_a_damaged_checkpoint_does_not_become_the_one_before(tmp_path):
    last = tmp_path / "last.ckpt"
    for i in range(3):
        VerifiedCheckpointIO().save_checkpoint({"i": i}, last)
    flip_a_bit(last)
    VerifiedCheckpointIO().save_checkpoint({"i": 3}, last)
    assert [
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["i"]
        for name in ("last", "previous")
    ] == [3, 1]


def test_a_checkpoint_that_does_not_read_back_does_not_replace_one_that_does(tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"i": 0}, last)
    monkeypatch.setattr(
        torch, "save", lambda checkpoint, file: file.write(b"not what was asked for")
    )
    with pytest.raises(OSError, match="new.ckpt cannot be read back"):
        VerifiedCheckpointIO().save_checkpoint({"i": 1}, last)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt"]
    assert torch.load(last, weights_only=True) == {"i": 0}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    """Of a tensor's bytes, which nothing but a checksum can notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.fault_injection("fault", "a truncated or damaged checkpoint")
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, os.remove])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tiny, tiny_until, tmp_path, capsys, damage
):
    whole = tiny(f"output_dir={tmp_path}/whole")

    tiny_until(7)
    last = next((tmp_path / "runs").rglob("last.ckpt"))
    damage(last)
    assert not last.exists() or not is_valid_checkpoint(last)
    assert_same_run(whole, tiny())
    assert (f"{last} is damaged and passed over" in capsys.readouterr().out) == (
        damage is not os.remove
    )


@pytest.mark.fault_injection("fault", "all checkpoints damaged")
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_over_them(tiny, find):
    folder = tiny()
    (folder.path / "summary.json").unlink()
    for path in folder.last_checkpoint.parent.iterdir():
        truncate(path)
    with pytest.raises(
        ValueError, match="no checkpoint in .*checkpoints can be read: remove that folder"
    ):
        tiny()


def altered(folder, change):
    checkpoint = weights(folder)
    change(checkpoint)
    torch.save(checkpoint, folder.last_checkpoint)
    (folder.path / "summary.json").unlink()


@pytest.mark.fault_injection("fault", "a checkpoint of another config")
def test_the_config_in_a_checkpoint_must_be_the_runs(tiny):
    altered(
        tiny(), lambda checkpoint: checkpoint["run"]["config"].update({"recipe.schedule.lr": 0.5})
    )
    with pytest.raises(
        ValueError, match=r"of another config \(recipe.schedule.lr was 0.5, now 0.1\): move that"
    ):
        tiny()


@pytest.mark.fault_injection("fault", "other images than those that the run was begun with")
def test_other_images_than_those_it_was_trained_on_are_refused(tiny, tiny_until, monkeypatch, find):
    folder = find(*TINY, "trainer.precision=32-true")

    tiny_until(5)
    kept = folder.last_checkpoint.read_bytes()
    read = Digits.read

    def one_pixel_differs(self):
        images, *rest = read(self)
        images[0, 0, 0, 0] ^= 1
        return images, *rest

    with monkeypatch.context() as patch:
        patch.setattr("src.data.digits.Digits.read", one_pixel_differs)
        with pytest.raises(
            ValueError, match="was trained on other images than those that are there now"
        ):
            tiny()
    assert folder.last_checkpoint.read_bytes() == kept
    tiny()
    assert folder.summary


def test_a_checkpoint_of_an_earlier_version_is_refused_in_a_line(tiny, tiny_until, find):
    tiny_until(5)
    last = find(*TINY, "trainer.precision=32-true").last_checkpoint
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["training"]["trained"] = (2.5, 100, 50, 128)
    VerifiedCheckpointIO().save_checkpoint(checkpoint, last)
    with pytest.raises(ValueError, match="is of an earlier version of this code"):
        tiny()
