"""A lock on a directory, which ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from src.runs.atomic_io import writing


class LockedError(ValueError):
    """Another process is writing to a run directory."""


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[TextIO]:
    """Hold the file `lock` of a directory, with the name of this process in it.

    Raises:
        LockedError: another process holds it.
        OSError: it cannot be written.
    """
    with writing(directory):
        # Appending does not truncate the file, in which a process that holds it has its name.
        lock = open(directory / "lock", "a+")  # noqa: SIM115 (closed by the block below)
    # Worker processes may outlive a killed run and must not keep its lock.
    os.register_at_fork(after_in_child=lock.close)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read() or "another process"
            raise LockedError(
                f"{directory} is being written by {owner}: wait for it, or stop it"
            ) from None
        with writing(directory):
            lock.truncate(0)
            # Not through the file's buffer: a full disk is noticed here.
            os.write(lock.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield lock


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file, after waiting until no other process has it."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
