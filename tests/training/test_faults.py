"""Faults as they come, by real means: a disk that is full or read-only, a folder that is taken away under a run.

Each ends the run with its path and what to do, and leaves the last good checkpoint; when the fault is gone, the same
command ends at the same bits.
"""

import ctypes
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed
from data.images_on_disk import make_folders
from interruptible_run import InterruptibleRun
from src.training.callbacks.record import Record
from test_kills import assert_nothing_lost_and_nothing_wrong, reached

from src import train
from src.benchmark.baselines import compose_run
from src.runs.run_dir import RunDir

HERE = Path.cwd()


def tiny_below(place: Path) -> RunDir:
    return train.find_run_dir(
        compose_run(f"output_dir={place}", *TINY, "trainer.precision=32-true")
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunDir:
    """The run that nothing happened to, on as many threads as those that something happens to."""
    place = tmp_path_factory.mktemp("whole")
    folder, log = tiny_below(place), place / "log"
    assert InterruptibleRun(folder, log).end() == 0, log.read_text()
    return folder


class Disk:
    """A file system of its own at `place`, seen by those that join it; by others, through a process that has it."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.place = place
        hold = f"mount -t tmpfs -o size=64m tmpfs '{place}' && echo mounted && exec sleep 1000"
        self.holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", hold], stdout=subprocess.PIPE, text=True
        )
        self.there = self.holder.stdout.readline() == "mounted\n"

    def seen(self, folder: RunDir) -> RunDir:
        return RunDir(Path(f"/proc/{self.holder.pid}/root{folder.path}"), folder.config)

    def remount(self, options: str) -> None:
        inside = ["nsenter", "-t", str(self.holder.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*inside, "mount", "-o", f"remount,{options}", str(self.place)], check=True)


def join(process: int) -> None:
    """Takes this process into the namespaces of users and mounts of another."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("user", "mnt"):
        with open(f"/proc/{process}/ns/{name}") as namespace:
            assert libc.setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    os.chdir(HERE)


@pytest.fixture
def disk(tmp_path) -> Disk:
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare here to mount a disk with")
    disk = Disk(tmp_path / "disk")
    if not disk.there:
        pytest.skip("a user may not mount a disk of his own here")
    yield disk
    disk.holder.kill()
    disk.holder.wait()


class Tried:
    """Attempts at one run, and what the last one said."""

    def __init__(self, folder: RunDir, log: Path, disk: Disk | None = None) -> None:
        self.folder, self.log = folder, log
        self.before = partial(join, disk.holder.pid) if disk else None

    def to(self, *stop: object) -> InterruptibleRun:
        """An interruptible_run that has come to a place."""
        process = InterruptibleRun(self.folder, self.log, stop, self.before)
        process.reach()
        return process

    def finishes(self) -> None:
        assert InterruptibleRun(self.folder, self.log, None, self.before).end() == 0, (
            self.log.read_text()
        )

    def fails(self, process: InterruptibleRun | None = None) -> str:
        """What a process says last, which is let go on; a new one if none is given."""
        if process:
            process.let_go()
        else:
            self.log.unlink(missing_ok=True)
            process = InterruptibleRun(self.folder, self.log, None, self.before)
        assert process.end() == 1
        said = self.log.read_text()
        assert "Traceback" not in said
        return said.splitlines()[-1].replace(str(self.folder.path), "FOLDER")


@pytest.fixture
def tried(tmp_path) -> Tried:
    return Tried(tiny_below(tmp_path / "runs"), tmp_path / "log")


@pytest.fixture
def on_disk(disk, tmp_path) -> Tried:
    return Tried(tiny_below(disk.place / "runs"), tmp_path / "log", disk)


FULL = "(No space left on device): make room on that disk; the same command then goes on"


@pytest.mark.fault_injection("fault", "a full disk while a checkpoint is written")
def test_a_full_disk_while_a_checkpoint_is_written(whole, disk, on_disk):
    disk.remount("size=1000k")
    assert on_disk.fails() == f"FOLDER/checkpoints/new.ckpt cannot be written {FULL}"
    seen = disk.seen(on_disk.folder)
    assert reached(seen) == 2 and os.listdir(seen.last_checkpoint.parent) == ["last.ckpt"]
    disk.remount("size=64m")
    on_disk.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, seen)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    with (
        pytest.raises(OSError, match="No space"),
        open(folder / "filler", "wb", buffering=0) as file,
    ):
        while True:
            file.write(bytes(4096))
    return folder / "filler"


@pytest.mark.fault_injection("fault", "a full disk when the run begins")
def test_a_full_disk_when_the_run_begins(whole, disk, on_disk):
    seen = disk.seen(on_disk.folder)
    filler = fill(seen.path.parents[2])
    assert on_disk.fails() == f"FOLDER cannot be written {FULL}"
    filler.unlink()
    on_disk.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, seen)


@pytest.mark.fault_injection("fault", "a full disk while a row is written")
def test_a_full_disk_while_a_row_is_written(whole, disk, on_disk):
    """The first row of layers.csv, at iteration 3, as a page that is begun already takes what comes."""
    interruptible_run, seen = on_disk.to("writing rows", 3, 0), disk.seen(on_disk.folder)
    filler = fill(seen.path)
    assert on_disk.fails(interruptible_run) == f"FOLDER/layers.csv cannot be written {FULL}"
    assert reached(seen) == 2
    filler.unlink()
    on_disk.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, seen)


@pytest.mark.fault_injection("fault", "a read-only folder")
def test_a_read_only_folder(whole, disk, on_disk):
    answer = "(Read-only file system): make that place writable, or say another with output_dir=FOLDER; the same command"
    disk.remount("ro")
    assert on_disk.fails().startswith(f"FOLDER cannot be written {answer}")
    disk.remount("rw")
    on_disk.to("training", 5, 0).kill()
    disk.remount("ro")
    seen = disk.seen(on_disk.folder)
    kept = seen.last_checkpoint.read_bytes()
    assert on_disk.fails().startswith(f"FOLDER cannot be written {answer}")
    assert seen.last_checkpoint.read_bytes() == kept and reached(seen) == 4
    disk.remount("rw")
    on_disk.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, seen)


def gone(what: str) -> str:
    return (
        f"{what} was removed or moved while the run went on: put it back, and the same command goes on; or remove what "
        "is left of FOLDER, and it starts anew"
    )


@pytest.mark.fault_injection("fault", "a run folder that is moved away while the run goes on")
def test_a_run_folder_that_is_moved_away(whole, tried, tmp_path):
    interruptible_run, folder = tried.to("training", 4, 0), tried.folder
    folder.path.rename(tmp_path / "away")
    kept = (tmp_path / "away" / "checkpoints" / "last.ckpt").read_bytes()
    assert tried.fails(interruptible_run) == gone("FOLDER")
    assert not folder.path.exists()
    (tmp_path / "away").rename(folder.path)
    assert folder.last_checkpoint.read_bytes() == kept and reached(folder) == 4
    tried.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, folder)


@pytest.mark.fault_injection("fault", "a run folder that is removed while the run goes on")
@pytest.mark.parametrize("begun_anew", [False, True])
def test_a_run_folder_that_is_removed(whole, tried, begun_anew):
    """Also when another process has begun the run anew at the same place, which the first must leave alone."""
    interruptible_run, folder = tried.to("training", 4, 0), tried.folder
    shutil.rmtree(folder.path)
    if begun_anew:
        tried.finishes()
    assert tried.fails(interruptible_run) == gone("FOLDER")
    if not begun_anew:
        assert not folder.path.exists()
        tried.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, folder)


@pytest.mark.fault_injection(
    "fault", "metrics.csv removed while the run goes on, or before it goes on"
)
def test_rows_that_are_removed(whole, tried):
    """Never does the file begin in its middle."""
    interruptible_run, folder = tried.to("training", 4, 0), tried.folder
    rows = folder.metrics.read_bytes()
    folder.metrics.unlink()
    assert tried.fails(interruptible_run) == gone("FOLDER/metrics.csv")
    assert not folder.metrics.exists()
    for left in (None, b"".join(rows.splitlines(keepends=True)[:2])):
        if left:
            folder.metrics.write_bytes(left)
        first = 3 if left else 2
        assert tried.fails() == (
            f"FOLDER/metrics.csv does not fit its checkpoint (see iteration {first}): bring back the whole file, or "
            "remove FOLDER to start the run anew"
        )
        assert reached(folder) == 4
    folder.metrics.write_bytes(rows)
    tried.finishes()
    assert_nothing_lost_and_nothing_wrong(whole, folder)


PHOTOS = "data=imagenet model=resnet n=1 data.num_workers=0 recipe.batch_size=2 recipe.iterations=4 recipe.eval_every=4"
PHOTOS += " recipe.log_every=1 recipe.checkpoint_every=1 trainer.precision=32-true"


@pytest.mark.fault_injection("fault", "a data folder that is not there when the run is to go on")
def test_a_data_folder_that_is_gone_between_two_attempts(find, tmp_path, monkeypatch):
    root = make_folders(tmp_path / "photos", train=2, val=1)
    overrides = [*PHOTOS.split(), f"data.root={root}"]
    whole, folder = find(*overrides, f"output_dir={tmp_path}/whole"), find(*overrides)
    train.run(whole)

    def stop(self: Record, trainer: object, *_: object) -> None:
        if trainer.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Record, "on_train_batch_start", stop)
        train.run(folder)
    kept = folder.last_checkpoint.read_bytes()
    root.rename(tmp_path / "away")
    with pytest.raises(
        FileNotFoundError, match=f"there is no folder {root}/train: name with data.root="
    ):
        train.run(folder)
    assert folder.last_checkpoint.read_bytes() == kept and reached(folder) == 3
    (tmp_path / "away").rename(root)
    train.run(folder)
    assert_nothing_lost_and_nothing_wrong(whole, folder)


@pytest.mark.fault_injection("fault", "a weight that is not finite")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_weight_that_is_not_finite_reaches_no_checkpoint(
    tiny, find, tmp_path, monkeypatch, value
):
    """At iteration 4, after its loss is measured."""
    end = Record.on_train_batch_end

    def spoil(self: Record, trainer: object, module: object, *of_batch: object) -> None:
        if trainer.global_step == 4:
            next(module.net.parameters()).data[0, 0, 0, 0] = value
        end(self, trainer, module, *of_batch)

    folder = find(*TINY, "trainer.precision=32-true")
    with monkeypatch.context() as patch:
        patch.setattr(Record, "on_train_batch_end", spoil)
        with pytest.raises(FloatingPointError) as error:
            tiny()
    assert str(error.value) == (
        "a weight is not finite at iteration 4, rate 0.1: try a lower recipe.schedule.lr (the last good checkpoint is "
        f"{folder.last_checkpoint})"
    )
    assert folder.error.read_text() == str(error.value)
    assert reached(folder) == 3
    whole = tiny(f"output_dir={tmp_path}/whole")
    assert_nothing_lost_and_nothing_wrong(whole, tiny())
