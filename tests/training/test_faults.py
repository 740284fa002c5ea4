"""Faults by real means: a disk that is full or read-only, a run directory removed during the run.

Each ends the run with a message that names the path and what to do, and leaves the last good
checkpoint; once the fault is gone, the same command ends bitwise identical to an undisturbed run.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, KillBefore, Killed
from data.images_on_disk import make_folders
from interruptible_run import InterruptibleRun
from pytorch_lightning import Callback
from test_kills import assert_identical_except_times, resume_iteration

from src import train
from src.config import compose_config, find_run_dir
from src.runs.run_dir import RunDir

WORKING_DIRECTORY = Path.cwd()
FULL = "(No space left on device): free some space on that disk; the same command then resumes"
READ_ONLY = "(Read-only file system): make it writable, or choose another directory with output_dir"


def tiny_run_dir(output_dir: Path) -> RunDir:
    return find_run_dir(
        compose_config(f"output_dir={output_dir}", *TINY, "trainer.precision=32-true")
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> RunDir:
    """Return a finished run, computed with as many threads as the others."""
    output_dir = tmp_path_factory.mktemp("undisturbed")
    run_dir, log = tiny_run_dir(output_dir), output_dir / "log"
    assert InterruptibleRun(run_dir, log).wait() == 0, log.read_text()
    return run_dir


class Disk:
    """A file system mounted at `path` for the processes that join it alone."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        mount = f"mount -t tmpfs -o size=64m tmpfs '{path}' && echo mounted && exec sleep infinity"
        self.holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", mount], stdout=subprocess.PIPE, text=True
        )
        self.mounted = self.holder.stdout.readline() == "mounted\n"

    def visible(self, run_dir: RunDir) -> RunDir:
        """Return a run directory on this disk by a path that this process sees."""
        return RunDir(Path(f"/proc/{self.holder.pid}/root{run_dir.path}"), run_dir.config)

    def remount(self, options: str) -> None:
        enter = ["nsenter", "-t", str(self.holder.pid), "-U", "-m", "--preserve-credentials"]
        command = [*enter, "mount", "-o", f"remount,{options}", str(self.path)]
        subprocess.run(command, check=True)


def join_namespaces(process: int) -> None:
    """Move this process into the user and mount namespaces of another."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("user", "mnt"):
        with open(f"/proc/{process}/ns/{name}") as namespace:
            assert libc.setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    os.chdir(WORKING_DIRECTORY)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare command to mount a disk with")
    disk = Disk(tmp_path / "disk")
    if not disk.mounted:
        pytest.skip("this user may not mount a disk")
    yield disk
    disk.holder.kill()
    disk.holder.wait()


class Attempts:
    """Attempts at one run, which share a log."""

    def __init__(self, run_dir: RunDir, log: Path, disk: Disk | None = None) -> None:
        self.run_dir, self.log = run_dir, log
        self.before = partial(join_namespaces, disk.holder.pid) if disk else None

    def stop_at(self, *stop: object) -> InterruptibleRun:
        """Return a run that has stopped at a place."""
        process = InterruptibleRun(self.run_dir, self.log, stop, self.before)
        process.wait_for_stop()
        return process

    def finish(self) -> None:
        process = InterruptibleRun(self.run_dir, self.log, None, self.before)
        assert process.wait() == 0, self.log.read_text()

    def fail(self, process: InterruptibleRun | None = None) -> str:
        """Return the error message of a stopped run once it resumes, or else of a new attempt."""
        if process:
            process.resume()
        else:
            self.log.unlink(missing_ok=True)
            process = InterruptibleRun(self.run_dir, self.log, None, self.before)
        assert process.wait() == 1
        output = self.log.read_text()
        assert "Traceback" not in output
        return output.splitlines()[-1].replace(str(self.run_dir.path), "RUN_DIR")


@pytest.fixture
def attempts(tmp_path) -> Attempts:
    return Attempts(tiny_run_dir(tmp_path / "runs"), tmp_path / "log")


@pytest.fixture
def attempts_on_disk(disk, tmp_path) -> Attempts:
    return Attempts(tiny_run_dir(disk.path / "runs"), tmp_path / "log", disk)


@pytest.mark.fault_injection("fault", "a full disk while a checkpoint is written")
def test_a_disk_that_is_full_for_a_checkpoint_ends_the_run(undisturbed, disk, attempts_on_disk):
    disk.remount("size=1000k")
    message = attempts_on_disk.fail()
    assert message == f"RUN_DIR/checkpoints/new.ckpt cannot be written {FULL}"
    run_dir = disk.visible(attempts_on_disk.run_dir)
    assert resume_iteration(run_dir) == 2
    assert os.listdir(run_dir.last_checkpoint.parent) == ["last.ckpt"]
    disk.remount("size=64m")
    attempts_on_disk.finish()
    assert_identical_except_times(undisturbed, run_dir)


def fill(directory: Path) -> Path:
    """Return a file that takes all the space there is."""
    path = directory / "filler"
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        file.writelines(itertools.repeat(bytes(4096)))
    return path


@pytest.mark.fault_injection("fault", "a full disk when the run begins")
def test_a_disk_that_is_full_at_the_start_ends_the_run(undisturbed, disk, attempts_on_disk):
    run_dir = disk.visible(attempts_on_disk.run_dir)
    filler = fill(run_dir.path.parents[2])
    assert attempts_on_disk.fail() == f"RUN_DIR cannot be written {FULL}"
    filler.unlink()
    attempts_on_disk.finish()
    assert_identical_except_times(undisturbed, run_dir)


@pytest.mark.fault_injection("fault", "a full disk while a row is written")
def test_a_disk_that_is_full_for_a_row_ends_the_run(undisturbed, disk, attempts_on_disk):
    # The first row of layers.csv, at iteration 1: a file that exists still has space in its page.
    process = attempts_on_disk.stop_at("writing rows", 1, 0)
    run_dir = disk.visible(attempts_on_disk.run_dir)
    filler = fill(run_dir.path)
    assert attempts_on_disk.fail(process) == f"RUN_DIR/layers.csv cannot be written {FULL}"
    filler.unlink()
    attempts_on_disk.finish()
    assert_identical_except_times(undisturbed, run_dir)


@pytest.mark.fault_injection("fault", "a read-only run directory")
def test_a_read_only_run_directory_ends_the_run(undisturbed, disk, attempts_on_disk):
    disk.remount("ro")
    assert attempts_on_disk.fail().startswith(f"RUN_DIR cannot be written {READ_ONLY}")
    disk.remount("rw")
    attempts_on_disk.stop_at("training", 5, 0).kill()
    disk.remount("ro")
    run_dir = disk.visible(attempts_on_disk.run_dir)
    checkpoint = run_dir.last_checkpoint.read_bytes()
    assert attempts_on_disk.fail().startswith(f"RUN_DIR cannot be written {READ_ONLY}")
    assert run_dir.last_checkpoint.read_bytes() == checkpoint
    assert resume_iteration(run_dir) == 4
    disk.remount("rw")
    attempts_on_disk.finish()
    assert_identical_except_times(undisturbed, run_dir)


def removed(what: str) -> str:
    return (
        f"{what} was removed or moved during the run: put it back and repeat the command, "
        "or remove what is left of RUN_DIR to start from scratch"
    )


@pytest.mark.fault_injection("fault", "a run directory moved away during the run")
def test_a_run_directory_moved_away_during_the_run_ends_it(undisturbed, attempts, tmp_path):
    process, run_dir = attempts.stop_at("training", 4, 0), attempts.run_dir
    run_dir.path.rename(tmp_path / "away")
    checkpoint = (tmp_path / "away" / "checkpoints" / "last.ckpt").read_bytes()
    assert attempts.fail(process) == removed("RUN_DIR")
    assert not run_dir.path.exists()
    (tmp_path / "away").rename(run_dir.path)
    assert run_dir.last_checkpoint.read_bytes() == checkpoint
    assert resume_iteration(run_dir) == 4
    attempts.finish()
    assert_identical_except_times(undisturbed, run_dir)


@pytest.mark.fault_injection("fault", "a run directory removed during the run")
@pytest.mark.parametrize("started_again", [False, True])
def test_a_run_directory_removed_during_the_run_ends_it(undisturbed, attempts, started_again):
    """A second process may have started the run again by then: the first leaves its files alone."""
    process, run_dir = attempts.stop_at("training", 4, 0), attempts.run_dir
    shutil.rmtree(run_dir.path)
    if started_again:
        attempts.finish()
    assert attempts.fail(process) == removed("RUN_DIR")
    if not started_again:
        assert not run_dir.path.exists()
        attempts.finish()
    assert_identical_except_times(undisturbed, run_dir)


@pytest.mark.fault_injection("fault", "metrics.csv removed during the run, or before it resumes")
def test_a_removed_metrics_file_ends_the_run_and_never_begins_in_the_middle(undisturbed, attempts):
    process, run_dir = attempts.stop_at("training", 4, 0), attempts.run_dir
    rows = run_dir.metrics.read_bytes()
    run_dir.metrics.unlink()
    assert attempts.fail(process) == removed("RUN_DIR/metrics.csv")
    assert not run_dir.metrics.exists()

    header_and_row = b"".join(rows.splitlines(keepends=True)[:2])
    for content, first_missing in ((None, 2), (header_and_row, 3)):
        if content:
            run_dir.metrics.write_bytes(content)
        assert attempts.fail() == (
            f"RUN_DIR/metrics.csv does not match its checkpoint (see iteration {first_missing}): "
            "restore the complete file, or remove RUN_DIR to start from scratch"
        )
        assert resume_iteration(run_dir) == 4

    run_dir.metrics.write_bytes(rows)
    attempts.finish()
    assert_identical_except_times(undisturbed, run_dir)


IMAGENET = [
    "data=imagenet",
    "model=resnet",
    "n=1",
    "data.num_workers=0",
    "recipe.batch_size=2",
    "recipe.iterations=4",
    "recipe.eval_every=4",
    "recipe.log_every=1",
    "recipe.checkpoint_every=1",
    "checkpoint_seconds=0",
    "trainer.precision=32-true",
]


@pytest.mark.fault_injection("fault", "a data directory that is gone when the run resumes")
def test_a_run_whose_data_are_gone_keeps_its_checkpoint_and_resumes_when_they_are_back(
    find, tmp_path
):
    root = make_folders(tmp_path / "images", train=2, val=1)
    overrides = [*IMAGENET, f"data.root={root}"]
    undisturbed = find(*overrides, f"output_dir={tmp_path}/undisturbed")
    run_dir = find(*overrides)
    train.run(undisturbed)
    with pytest.raises(Killed):
        train.run(run_dir, [KillBefore(3)])
    checkpoint = run_dir.last_checkpoint.read_bytes()
    root.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=f"{root}/train.*data.root="):
        train.run(run_dir)
    assert run_dir.last_checkpoint.read_bytes() == checkpoint
    assert resume_iteration(run_dir) == 3
    (tmp_path / "away").rename(root)
    train.run(run_dir)
    assert_identical_except_times(undisturbed, run_dir)


class SpoilWeight(Callback):
    """Overwrite a weight in iteration 4, after its loss is computed."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_after_backward(self, trainer, module):
        if trainer.global_step == 3:
            next(module.net.parameters()).data[0, 0, 0, 0] = self.value


@pytest.mark.fault_injection("fault", "a weight that is not finite")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_weight_that_is_not_finite_reaches_no_checkpoint(tiny, find, tmp_path, value):
    run_dir = find(*TINY, "trainer.precision=32-true")
    with pytest.raises(FloatingPointError) as error:
        train.run(run_dir, [SpoilWeight(value)])
    assert str(error.value) == (
        "a weight is not finite at iteration 4, learning rate 0.1: try a lower "
        f"recipe.schedule.lr (the last good checkpoint is {run_dir.last_checkpoint})"
    )
    assert run_dir.error.read_text() == str(error.value)
    assert resume_iteration(run_dir) == 3
    train.run(run_dir)
    assert_identical_except_times(tiny(f"output_dir={tmp_path}/undisturbed"), run_dir)
