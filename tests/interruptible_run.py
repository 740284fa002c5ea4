"""Runs in processes of their own, each stopped at a chosen line of what it does, to be killed or let go on there.

They are forked from a server that has the heavy imports loaded, so that one costs a second.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from multiprocessing import connection, get_context
from pathlib import Path
from types import FrameType
from typing import Any

from src.runs.run_dir import RunDir
from src.training.sweep import HEAVY

DOING = ("making its folder", "training", "writing rows", "evaluating", "writing a checkpoint")
DOING_AT_ITS_END = ("testing", "writing its summary")
ALL = ("starting, or between these", *DOING, *DOING_AT_ITS_END)
SOURCE = str(Path(__file__).resolve().parents[1] / "src")

forked = get_context("forkserver")
forked.set_forkserver_preload([*HEAVY, "sklearn.datasets", "interruptible_run"])


class InterruptibleRun:
    """A run in a process that has begun.

    Args:
        stop: where it is to be stopped, as (what it does, time, line of `src`), each counted from 0; if there are fewer
            lines, at their end. None for nowhere.
        log: where its output goes.
        before: called in the process before the run.
        setting: of its environment.
    """

    def __init__(
        self,
        folder: RunDir,
        log: Path,
        stop: tuple[str, int, int] | None = None,
        before: Callable[[], object] | None = None,
        **setting: str,
    ) -> None:
        self.log, self.doing, self.lines = (
            log,
            forked.RawValue("i", 0),
            forked.RawArray("i", len(ALL)),
        )
        self.here, there = forked.Pipe()
        arguments = (folder, log, before, setting, stop, self.doing, self.lines, there)
        self.process = forked.Process(target=live, args=arguments, daemon=True)
        self.process.start()
        there.close()

    def reach(self) -> None:
        """Waits until it is stopped where it should be."""
        assert self.here.poll(60), f"it does not come there: {self.log.read_text()}"
        try:
            self.here.recv()
        except EOFError:
            raise AssertionError(f"it ended before: {self.log.read_text()}") from None

    def let_go(self) -> None:
        self.here.send("go on")

    def kill(self) -> str:
        """Ends it with SIGKILL and returns what it was doing."""
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, self.log.read_text()
        return ALL[self.doing.value]

    def ends_within(self, seconds: float) -> bool:
        return bool(connection.wait([self.process.sentinel], seconds))

    def end(self) -> int:
        """Its exit status, when it has ended."""
        assert self.ends_within(100), self.log.read_text()
        self.process.join()
        return self.process.exitcode


class Follower:
    """Notes what a run does and how many lines of `src` that takes, and stops it where it should be stopped."""

    def __init__(
        self,
        stop: tuple[str, int, int] | None,
        doing: Any,
        lines: Any,
        there: connection.Connection,
    ) -> None:
        self.at, self.doing, self.lines, self.there = stop, doing, lines, there
        self.times = [0] * len(ALL)

    def enter(self, what: str) -> None:
        self.doing.value, self.line = ALL.index(what), 0
        if self.at is None or self.at[:2] == (what, self.times[self.doing.value]):
            sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line":
            if self.at and self.line == self.at[2]:
                self.stop()
            self.line += 1
        return self.trace

    def leave(self, what: str) -> None:
        now = ALL.index(what)
        if sys.gettrace():
            self.lines[now] = max(self.lines[now], self.line)
            self.stop()
        self.times[now] += 1
        self.doing.value = 0

    def stop(self) -> None:
        sys.settrace(None)
        if self.at:
            self.there.send("stopped")
            self.there.recv()

    def during(self, owner: type, name: str, what: str) -> None:
        """`what` is done in a method."""
        method = getattr(owner, name)

        @wraps(method)
        def followed(*arguments: Any, **named: Any) -> Any:
            self.enter(what)
            result = method(*arguments, **named)
            self.leave(what)
            return result

        setattr(owner, name, followed)

    def before(self, owner: type, name: str, then: Callable[[str], None], what: str) -> None:
        """`what` begins or ends where a method begins."""
        method = getattr(owner, name)

        @wraps(method)
        def followed(*arguments: Any, **named: Any) -> Any:
            then(what)
            return method(*arguments, **named)

        setattr(owner, name, followed)


def live(
    folder: RunDir,
    log: Path,
    before: Callable[[], object] | None,
    setting: dict[str, str],
    *of_stop: Any,
) -> None:
    """The life of an interruptible_run's process, in which the run is as `python -m src.train` has it."""
    os.environ.update(setting)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch
    from pytorch_lightning import Trainer
    from src.training.callbacks.record import Record
    from tqdm import tqdm

    from src import train
    from src.cli import entry
    from src.tasks.classification import Classifier
    from src.training import checkpoint_io, trainer

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    follower = Follower(*of_stop)
    follower.before(RunDir, "locked", follower.enter, "making its folder")
    follower.before(trainer, "latest_valid_checkpoint", follower.leave, "making its folder")
    follower.before(Classifier, "on_train_batch_start", follower.enter, "training")
    follower.before(Record, "on_train_batch_end", follower.leave, "training")
    follower.before(Record, "on_validation_start", follower.enter, "evaluating")
    follower.before(Record, "on_validation_end", follower.leave, "evaluating")
    for name in ("log", "log_layers", "truncate_to"):
        follower.during(RunDir, name, "writing rows")
    follower.during(checkpoint_io.VerifiedCheckpointIO, "save_checkpoint", "writing a checkpoint")
    follower.during(Trainer, "test", "testing")
    follower.during(RunDir, "finish", "writing its summary")
    if before:
        before()
    entry(lambda: train.run(folder))
