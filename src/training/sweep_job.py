"""One run of a sweep: what it costs, the process that executes it, and why that failed."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from src.runs.run_dir import RunDir
from src.training.devices import count_devices

# A launcher outside the sweep may have set these; a run that saw them would take itself for one of
# several ranks.
LAUNCHER_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "SLURM_NTASKS", "SLURM_JOB_ID"),
)


@dataclass(eq=False)
class Job:
    """One run of a sweep.

    Attributes:
        run_dir: the directory of the run.
        overrides: the command-line arguments that compose its config.
        process: the process that executes it.
        devices: the devices leased to it.
        started, ended: times in seconds, as of `time.monotonic`.
        progress: the part of `cost` that was done when the run directory was last read.
    """

    run_dir: RunDir
    overrides: list[str]
    process: BaseProcess = field(init=False)
    devices: list[str] = field(default_factory=list)
    started: float = 0.0
    ended: float | None = None
    progress: float = 0.0

    @property
    def cost(self) -> int:
        """Iterations times batch size times depth, which is proportional to the run's duration."""
        recipe, model = self.run_dir.config["recipe"], self.run_dir.config["model"]
        depth = int(model.get("n") or model.get("depth") or 1)
        return recipe["iterations"] * recipe["batch_size"] * depth

    @property
    def devices_wanted(self) -> float:
        """The number of devices that the config asks for."""
        return count_devices(self.run_dir.config["trainer"]["devices"])

    def update_progress(self) -> None:
        """Read from the run directory how far the run is."""
        iterations = self.run_dir.config["recipe"]["iterations"]
        done = 1 if self.run_dir.summary else self.run_dir.last_iteration / iterations
        self.progress = done * self.cost


def failure(job: Job) -> str:
    """Return why a run failed, and record it in its directory if its process was killed."""
    code = job.process.exitcode or 0
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        job.run_dir.write_error(f"killed by {signal.Signals(-code).name}{hint}")
    if job.run_dir.error.exists():
        return job.run_dir.error.read_text()
    there = job.run_dir.path.exists()
    return "see its log.txt" if there else "its run directory was removed or moved during the run"


def kill(process: BaseProcess) -> None:
    """Kill the process of a run and those that it started."""
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def run_job(
    run: Callable[[RunDir], None],
    run_dir: RunDir,
    overrides: list[str],
    environment: dict[str, str],
) -> None:
    """Execute one run in this process, which is its own; the exit status is 0 if it finishes.

    Args:
        run: executes it.
        run_dir: the directory of the run.
        overrides: the command-line arguments that compose its config.
        environment: variables to set before torch is imported.
    """
    os.setsid()
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(environment)
    # Lightning starts the processes of further devices from the command line, which must not be the
    # sweep's.
    sys.argv = [sys.argv[0], *overrides, "hydra.mode=RUN"]
    # tqdm's own lock is a semaphore, and Python warns that a killed run leaks it.
    tqdm.set_lock(threading.RLock())

    import torch

    # The fork server may have imported torch before the variable was set.
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with open(run_dir.path / "log.txt", "a", buffering=1) as log, redirect_stdout(log):
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        run(run_dir)


def _end_with_the_sweep() -> None:
    """Kill this run when the sweep's process ends, however it is stopped."""
    sweep = parent_process()
    assert sweep is not None
    sweep.join()
    os.killpg(0, signal.SIGKILL)
