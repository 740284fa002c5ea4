"""Runs in processes of their own, each stopped at a chosen line of `src`, then killed or resumed.

They are forked from a server that has the heavy imports loaded, so each starts in under a second.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, Trainer
from tqdm import tqdm

from src.runs.run_dir import RunDir
from src.training.sweep import PRELOADED_MODULES

PHASES = (
    "creating its directory",
    "training",
    "writing rows",
    "evaluating",
    "writing a checkpoint",
)
LAST_PHASES = ("evaluating the final weights", "writing its summary")
ALL_PHASES = ("none of these", *PHASES, *LAST_PHASES)
SOURCE = str(Path(__file__).resolve().parents[1] / "src")
TIMEOUT = 200  # seconds; generous, as the machine may be busy

Stop = tuple[str, int, int]  # phase, its occurrence, line of src in it; both counted from 0

FORK_SERVER = get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    [
        *PRELOADED_MODULES,
        "sklearn.datasets",
        "src.evaluation.evaluator",
        "interruptible_run",
        "ranks",
    ]
)


class InterruptibleRun:
    """A run in a process that has started.

    Args:
        run_dir: the directory of the run.
        log: where its output goes.
        stop: where it stops; at the end of the phase if that has fewer lines. None for nowhere.
        before: called in the process before the run.
        callbacks: more callbacks of the run.
        environment: environment variables of the process.
    """

    def __init__(
        self,
        run_dir: RunDir,
        log: Path,
        stop: Stop | None = None,
        before: Callable[[], object] | None = None,
        callbacks: Sequence[Callback] = (),
        **environment: str,
    ) -> None:
        self.log = log
        self.phase = FORK_SERVER.RawValue("i", 0)
        self.lines = FORK_SERVER.RawArray("i", len(ALL_PHASES))
        self.pipe, theirs = FORK_SERVER.Pipe()
        arguments = (
            *(run_dir, log, before, callbacks, environment),
            *(stop, self.phase, self.lines, theirs),
        )
        self.process = FORK_SERVER.Process(target=run_and_follow, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def wait_for_stop(self) -> None:
        """Wait until the run has stopped at its place."""
        assert self.pipe.poll(TIMEOUT), f"it does not get there: {self.log.read_text()}"
        try:
            self.pipe.recv()
        except EOFError:
            raise AssertionError(f"it ended before: {self.log.read_text()}") from None

    def resume(self) -> None:
        """Let the run go on from where it stopped."""
        self.pipe.send("resume")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.process.pid, number)

    def kill(self) -> str:
        """Kill the process with SIGKILL, and return the phase that it was in."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, self.log.read_text()
        return ALL_PHASES[self.phase.value]

    def ends_within(self, seconds: float) -> bool:
        """Return whether the process ends within some seconds."""
        return bool(connection.wait([self.process.sentinel], seconds))

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit status."""
        assert self.ends_within(TIMEOUT), self.log.read_text()
        self.process.join()
        return self.process.exitcode


def start_ranks(
    run_dir: RunDir, log: Path, *stops: Stop | None, callbacks: Sequence[Callback] = ()
) -> list[InterruptibleRun]:
    """Start a run as several processes over gloo, one for each of `stops`, as torchrun does."""
    world_size = str(len(stops))
    environment = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    environment |= {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "one"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        InterruptibleRun(
            *(run_dir, log, stop, None, callbacks),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **environment,
        )
        for rank, stop in enumerate(stops)
    ]


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Follower(Callback):
    """Record the phase that a run is in and its lines of `src`, and stop the run at its place."""

    def __init__(
        self, stop: Stop | None, phase: Any, lines: Any, pipe: connection.Connection
    ) -> None:
        self.place, self.phase, self.lines, self.pipe = stop, phase, lines, pipe
        self.occurrences = [0] * len(ALL_PHASES)
        self.line = 0

    def enter(self, phase: str) -> None:
        """Begin a phase; the one before ends."""
        self.leave()
        self.phase.value, self.line = ALL_PHASES.index(phase), 0
        if self.place is None or self.place[:2] == (phase, self.occurrences[self.phase.value]):
            sys.settrace(self._trace)

    def leave(self) -> None:
        """End the phase; a run that should have stopped at a later line of it stops here."""
        phase = self.phase.value
        if sys.gettrace():
            self.lines[phase] = max(self.lines[phase], self.line)
            self._stop()
        self.occurrences[phase] += 1
        self.phase.value = 0

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line":
            if self.place and self.line == self.place[2]:
                self._stop()
            self.line += 1
        return self._trace

    def _stop(self) -> None:
        sys.settrace(None)
        if self.place:
            self.pipe.send("stopped")
            self.pipe.recv()

    # As the last of a run's callbacks it is called when the run's own have done their work.

    def on_train_batch_start(self, *_: object) -> None:
        self.enter("training")

    def on_train_batch_end(self, *_: object) -> None:
        self.leave()

    def on_validation_start(self, *_: object) -> None:
        self.enter("evaluating")

    def on_validation_end(self, *_: object) -> None:
        self.leave()

    def on_save_checkpoint(self, *_: object) -> None:
        self.enter("writing a checkpoint")

    def on_test_start(self, trainer: Trainer, *_: object) -> None:
        self.enter("evaluating the final weights")

    def on_test_end(self, *_: object) -> None:
        self.leave()


class FollowedRunDir(RunDir):
    """A run directory that tells a follower when it is written to."""

    follower: Follower

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.follower.enter("creating its directory")
        with super().locked():
            self.follower.leave()
            yield

    def truncate(self, *arguments: Any) -> None:
        self.follower.enter("writing rows")
        super().truncate(*arguments)
        self.follower.leave()

    def append_metrics(self, *arguments: Any) -> None:
        self.follower.enter("writing rows")
        super().append_metrics(*arguments)
        self.follower.leave()

    def append_layers(self, *arguments: Any) -> None:
        self.follower.enter("writing rows")
        super().append_layers(*arguments)
        self.follower.leave()

    def write_summary(self, *arguments: Any) -> None:
        self.follower.enter("writing its summary")
        super().write_summary(*arguments)
        self.follower.leave()


def run_and_follow(
    run_dir: RunDir,
    log: Path,
    before: Callable[[], object] | None,
    callbacks: Sequence[Callback],
    environment: dict[str, str],
    *follower_arguments: Any,
) -> None:
    """Do what `python -m src.train` does with a run, in the process of an InterruptibleRun."""
    os.environ.update(environment)
    redirect_output(log)
    import torch

    from src import train
    from src.cli import run_entry_point

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaks
    followed = FollowedRunDir(run_dir.path, run_dir.config, run_dir.defaults)
    followed.follower = Follower(*follower_arguments)
    if before:
        before()
    run_entry_point(lambda: train.run(followed, [*callbacks, followed.follower]))


def redirect_output(log: Path) -> None:
    """Append all output of this process to a file."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
