import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import ROOT, TINY, Killed

from src import train
from src.runs.run_dir import COLUMNS
from src.training.callbacks.record import Record

SUMMARY = (
    "model n depth shortcut data seed val_images train_images iterations parameters macs train_error val_error "
    "test_error test_error_top5 images_per_second seconds precision device devices versions git_commit"
).split()


def weights(folder):
    return torch.load(folder.last_checkpoint, weights_only=True)


def assert_same_run(one, other):
    for path, other_path in ((one.metrics, other.metrics), (one.layers, other.layers)):
        assert path.read_bytes() == other_path.read_bytes()
    a, b = weights(one), weights(other)
    assert a["global_step"] == b["global_step"] == 8
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    for state, other_state in zip(a["optimizer_states"], b["optimizer_states"], strict=True):
        assert state["state"].keys() == other_state["state"].keys()
        for key, value in state["state"].items():
            assert torch.equal(value["momentum_buffer"], other_state["state"][key]["momentum_buffer"])
    assert a["training"] == b["training"]


def test_a_run_fills_its_folder(tiny):
    folder = tiny()
    rows = [line.split(",") for line in folder.metrics.read_text().splitlines()]
    assert rows[0] == COLUMNS
    # Every second iteration is logged, every third and the last are evaluated.
    assert [row[0] for row in rows[1:]] == ["2", "3", "4", "6", "8"]
    evaluated = [row[0] for row in rows[1:] if row[COLUMNS.index("test/error")]]
    assert evaluated == ["3", "6", "8"] == [row[0] for row in rows[1:] if row[COLUMNS.index("train/error")]]
    assert list(folder.summary) == SUMMARY
    assert folder.summary["depth"] == 8
    assert folder.summary["test_error"] == folder.rows()[-1]["test/error"]
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["recipe"]["iterations"] == 8


def test_validation_images_are_measured_along_the_way_and_the_test_images_once(tiny):
    folder = tiny("data.val_images=100")
    text = folder.metrics.read_text().splitlines()
    assert all(line.split(",")[COLUMNS.index("test/error")] == "" for line in text[1:])
    assert folder.summary["val_error"] == folder.rows()[-1]["val/error"]
    assert folder.summary["test_error"] is not None


def test_the_same_seed_gives_the_same_bits_and_another_does_not(find, tiny, tmp_path):
    first = tiny()
    again = find(*TINY, "trainer.precision=32-true")
    again.path = tmp_path / "again"
    again.metrics, again.last_checkpoint = again.path / "metrics.csv", again.path / "checkpoints" / "last.ckpt"
    train.run(again)
    assert_same_run(first, again)
    assert tiny("seed=1").metrics.read_text() != first.metrics.read_text()


@pytest.mark.fault_injection("stop", "an exception before and after each step, row, evaluation and checkpoint")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("hook", "iterations"),
    [
        ("on_train_batch_end", [1, 2, 3, 4, 6, 7, 8]),
        ("on_validation_start", [3, 6, 8]),
        ("on_validation_end", [3, 6, 8]),
        ("_save", [2, 3, 4, 6, 8]),
    ],
)
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not(
    tiny, monkeypatch, tmp_path, record_property, hook, iterations, when
):
    """Stops before and after each kind of step: a row, an evaluation, a checkpoint. A warm-up gives it a state."""
    overrides = ("recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=89.0", "seed=3")
    whole = tiny(*overrides, f"output_dir={tmp_path}/whole")
    original = getattr(Record, hook)
    record_property("tried", len(iterations))
    for iteration in iterations:

        def stop(self, trainer, *args, iteration=iteration):
            if when == "after":
                original(self, trainer, *args)
            if trainer.global_step == iteration:
                raise Killed
            if when == "before":
                original(self, trainer, *args)

        runs = f"output_dir={tmp_path}/{iteration}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Record, hook, stop)
            tiny(*overrides, runs)
        assert_same_run(whole, tiny(*overrides, runs))


def test_warm_up_ends_and_stays_ended_over_a_resume(tiny, find, monkeypatch):
    warm = ("recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=200.0")
    folder = tiny(*warm, "recipe.schedule.milestones=[]")
    rates = [line.split(",")[1] for line in folder.metrics.read_text().splitlines()[1:]]
    # The first two iterations end it; each row tells the rate of its own iteration.
    assert rates == ["0.01", "0.1", "0.1", "0.1", "0.1"]
    assert weights(folder)["training"]["schedule"] == {"warming": False}


def test_a_finished_run_is_not_run_again(tiny, find, capsys):
    folder = tiny()
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert find(*TINY, "trainer.precision=32-true").summary == folder.summary
    command = [
        sys.executable,
        "-m",
        "src.train",
        *TINY,
        "trainer.precision=32-true",
        f"output_dir={folder.path.parents[1]}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is finished: 8 iterations" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}


def test_a_run_has_one_folder_however_it_is_asked_for(find):
    tiny_8 = [*TINY[1:], "trainer.precision=32-true"]
    named, by_n = find("model=resnet20", *tiny_8), find("model=resnet", "n=3", *tiny_8)
    assert named.path == by_n.path
    with named.locked():
        pass
    by_n.check_same_config()


def test_another_recipe_is_another_run(find):
    """On the digits, by the recipe of CIFAR-10: every number that differs is in the folder's name."""
    same = find("recipe=digits")
    other = find("recipe=cifar10")
    assert same.path == find().path != other.path
    assert "iterations64000" in other.path.name


@pytest.mark.fault_injection("fault", "a run folder of another config")
def test_a_finished_run_of_another_config_is_not_taken_for_this_one(tiny):
    folder = tiny()
    path = folder.path / "config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    command = [
        sys.executable,
        "-m",
        "src.train",
        *TINY,
        "trainer.precision=32-true",
        f"output_dir={folder.path.parents[1]}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "recipe.optimizer.momentum was 0.8, now 0.9" in done.stderr
    assert done.stdout == ""


@pytest.mark.fault_injection("fault", "two processes at one run folder")
def test_a_killed_process_goes_on_and_a_second_one_is_refused(find, tiny, tmp_path):
    """With real processes: SIGKILL in the middle, then the same command; meanwhile another is turned away."""
    overrides = ["n=1", "recipe.iterations=400", "recipe.eval_every=30", "trainer.precision=32-true"]
    command = [sys.executable, "-m", "src.train", *overrides, f"output_dir={tmp_path}/runs"]
    folder = find(*overrides)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not folder.last_checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ValueError, match=f"is being written by process {process.pid} on "):
        train.run(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.summary is None
    reached = weights(folder)["global_step"]
    assert 0 < reached < 400
    train.run(folder)
    whole = find(*overrides, f"output_dir={tmp_path}/whole")
    train.run(whole)
    assert folder.metrics.read_text() == whole.metrics.read_text()
    a, b = weights(folder)["state_dict"], weights(whole)["state_dict"]
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.fault_injection("processes", "two devices that share each batch and the test images")
def test_two_devices_share_each_batch_and_the_test_images(find, tmp_path):
    """Over gloo; an odd number of test images, so that the shares differ."""
    overrides = [*TINY, "trainer.precision=32-true", "data.test_images=501", f"output_dir={tmp_path}/runs"]
    where = ["trainer.accelerator=cpu", "trainer.devices=2"]
    command = [sys.executable, "-m", "src.train", *overrides, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = find(*overrides)
    assert folder.summary["devices"] == 2
    mistakes = folder.summary["test_error"] * 501 / 100
    assert mistakes == pytest.approx(round(mistakes), abs=1e-6)
    # 128 images a step: the errors of the last two of eight iterations are out of 256.
    assert (folder.summary["train_error"] * 256 / 100).is_integer()
    assert len(list(folder.path.parent.iterdir())) == 1


@pytest.mark.fault_injection("processes", "a process that dies")
def test_a_process_that_dies_ends_the_run_with_that_said(tmp_path):
    """Of two over gloo, the second is killed as soon as there are metrics."""
    (tmp_path / "sitecustomize.py").write_text(
        "import glob, os, signal, threading, time\n"
        "def die():\n"
        f"    while not glob.glob({str(tmp_path)!r} + '/runs/*/*/metrics.csv'):\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
    )
    where = ["trainer.accelerator=cpu", "trainer.devices=2", f"output_dir={tmp_path}/runs"]
    command = [sys.executable, "-m", "src.train", "n=1", "recipe.iterations=100000", "recipe.log_every=10", *where]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("another process of this run died or hangs; what it said itself stands above")


@pytest.mark.fault_injection("fault", "a loss that is not finite")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, find, monkeypatch):
    with pytest.raises(FloatingPointError, match="not finite at iteration 2, rate 1e[+]30: .*no checkpoint yet"):
        tiny("recipe.schedule.lr=1e30")
    monkeypatch.setattr("src.training.lr_schedule.step_rate", lambda iteration, *_: 0.1 if iteration < 4 else 1e30)
    with pytest.raises(FloatingPointError, match="not finite at iteration 6, .* last good checkpoint is .*last.ckpt"):
        tiny("seed=1", "recipe.eval_every=8")
    assert weights(find(*TINY, "trainer.precision=32-true", "seed=1", "recipe.eval_every=8"))["global_step"] == 4


def test_a_full_disk_ends_the_run_with_that_said_and_the_last_checkpoint_whole(tiny, find, monkeypatch):
    saves = []

    def fill(checkpoint, file):
        saves.append(len(saves))
        file.write(b"half of it")
        if len(saves) > 1:
            raise OSError(28, "No space left on device", file.name)
        file.seek(0)
        torch_save(checkpoint, file)

    torch_save = torch.save
    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match=r"new.ckpt cannot be written \(No space left on device\): make room"):
        tiny()
    folder = find(*TINY, "trainer.precision=32-true")
    assert weights(folder)["global_step"] == 2
    assert sorted(os.listdir(folder.last_checkpoint.parent)) == ["last.ckpt"]


def test_everything_saved_is_plain_data(tiny):
    folder = tiny()
    json.loads((folder.path / "summary.json").read_text())
    assert set(weights(folder)) >= {"state_dict", "optimizer_states", "loops", "training"}
