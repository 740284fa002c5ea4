"""Run the jobs of a sweep as processes, each with GPUs of its own.

A fork server has the heavy imports loaded and touches no device; every run is forked from it. So a
run that fails, is killed or runs out of memory affects no other, and a further run starts in half a
second. joblib and submitit are not used for this: neither leases GPUs to its jobs.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from src.runs.environment import cpu_count
from src.runs.run_dir import RunDir

# A launcher outside the sweep may have set these; a run that saw them would take itself for one of
# several ranks.
LAUNCHER_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "SLURM_NTASKS", "SLURM_JOB_ID"),
)
PRELOADED_MODULES = ["src.training.trainer", "src.data.cifar10", "src.models.resnet"]
BAR_FORMAT = "{percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"


class SweepError(ValueError):
    """A run of a sweep failed."""


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
        """The number of devices that the config asks for; `auto` and -1 ask for all."""
        devices = self.run_dir.config["trainer"]["devices"]
        if isinstance(devices, int) and devices > 0:
            return devices
        return len(devices) if isinstance(devices, list) else math.inf

    def update_progress(self) -> None:
        """Read from the run directory how far the run is."""
        iterations = self.run_dir.config["recipe"]["iterations"]
        done = 1 if self.run_dir.summary else self.run_dir.last_iteration / iterations
        self.progress = done * self.cost


class Sweep:
    """Run jobs until none is left; a failed one is reported at once and does not stop the others.

    Args:
        jobs: the runs; those that are finished already are only listed.
        slots: the devices, each as often as it takes a run: ["0", "1"] are two GPUs, ["cpu"] is the
            CPU.
        threads: CPU threads of each run.
        run: executes a run in its process.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        slots: Sequence[str],
        threads: int,
        run: Callable[[RunDir], None],
    ) -> None:
        jobs = {job.run_dir.path: job for job in jobs}.values()  # two commands may ask for one run
        self.finished = [job for job in jobs if job.run_dir.finished]
        # The longest first, so that no long run is left alone at the end; with a single slot the
        # order does not change the total, and the shortest first gives results early.
        self.waiting = sorted(
            (job for job in jobs if not job.run_dir.finished),
            key=lambda job: job.cost,
            reverse=len(slots) > 1,
        )
        self.running: list[Job] = []
        self.failed: dict[Job, str] = {}
        self.free, self.devices = list(slots), set(slots)
        self.threads, self.run_one = threads, run

    def run(self) -> None:
        """Run all jobs.

        Raises:
            SweepError: a run failed.
            ValueError: torchrun or srun started this process, so that others run the same sweep.
        """
        check_not_launched()
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED_MODULES)
        jobs = [*self.finished, *self.waiting]
        tqdm.write(
            f"{len(jobs)} runs, {len(self.finished)} of them finished before; "
            f"{len(self.free)} at a time, {self.threads} threads each"
        )
        for job in self.waiting:
            job.run_dir.create()
        for job in jobs:
            job.update_progress()

        total, done = sum(job.cost for job in jobs), int(sum(job.progress for job in jobs))
        with tqdm(total=total, initial=done, disable=None, bar_format=BAR_FORMAT) as bar:
            try:
                while self.waiting or self.running:
                    for job, devices in self.lease_devices():
                        self._start(job, devices, context)
                    self._wait()
                    bar.n = int(sum(job.progress for job in jobs))
                    bar.refresh()
            finally:
                for job in self.running:
                    kill(job.process)

        self._print_results(sorted(jobs, key=lambda job: job.run_dir.path))
        if self.failed:
            raise SweepError(
                f"{len(self.failed)} of {len(jobs)} runs failed; the same command tries them again"
            )

    def lease_devices(self) -> list[tuple[Job, list[str]]]:
        """Take the next waiting jobs that the free devices suffice for, and their devices."""
        leased = []
        while self.waiting:
            job = self.waiting[0]
            count = int(min(job.devices_wanted, len(self.devices)))
            devices = sorted(set(self.free), key=self.free.index)[:count]
            if len(devices) < count:
                break  # a shorter job that would fit must not keep this one waiting
            for device in devices:
                self.free.remove(device)
            self.waiting.remove(job)
            leased.append((job, devices))
        return leased

    def _start(self, job: Job, devices: list[str], context: ForkServerContext) -> None:
        job.run_dir.error.unlink(missing_ok=True)
        arguments = (self.run_one, job.run_dir, job.overrides, devices, self.threads)
        job.process = context.Process(target=run_job, args=arguments, name=job.run_dir.path.name)
        job.devices, job.started = devices, time.monotonic()
        job.process.start()
        self.running.append(job)
        tqdm.write(f"started   {job.run_dir.path} on {', '.join(devices)}")

    def _wait(self) -> None:
        """Wait for a second or until a run ends, and record how it ended."""
        connection.wait([job.process.sentinel for job in self.running], timeout=1)
        for job in self.running:
            job.update_progress()
        for job in [job for job in self.running if not job.process.is_alive()]:
            self.running.remove(job)
            self.free += job.devices
            job.ended = time.monotonic()
            kill(job.process)  # processes that it may have left behind
            if job.run_dir.finished:
                self.finished.append(job)
                tqdm.write(f"finished  {self._describe(job)}")
            else:
                self.failed[job] = failure(job)
                tqdm.write(f"FAILED    {self._describe(job)}", file=sys.stderr)

    def _print_results(self, jobs: Sequence[Job]) -> None:
        width = max(len(str(job.run_dir.path)) for job in jobs)
        print("\n" + "\n".join(self._describe(job, width) for job in jobs))

    def _describe(self, job: Job, width: int = 0) -> str:
        name = f"{job.run_dir.path!s:{width}}"
        if job in self.failed:
            return f"{name}: {self.failed[job].splitlines()[0]}"
        minutes = (job.ended - job.started) / 60 if job.ended else None
        duration = "finished before" if minutes is None else f"{minutes:.1f} min"
        return f"{name}: {job.run_dir.describe_results()}, {duration}"


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
    devices: list[str],
    threads: int,
) -> None:
    """Execute one run in this process, which is its own; the exit status is 0 if it finishes."""
    os.setsid()
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if devices[0] != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    # Lightning starts the processes of further devices from the command line, which must not be the
    # sweep's.
    sys.argv = [sys.argv[0], *overrides, "hydra.mode=RUN"]
    # tqdm's own lock is a semaphore, and Python warns that a killed run leaks it.
    tqdm.set_lock(threading.RLock())

    import torch

    torch.set_num_threads(threads)
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


def check_not_launched() -> None:
    """Check that a sweep is one process.

    Raises:
        ValueError: torchrun or srun started several.
    """
    several_tasks = "SLURM_STEP_ID" in os.environ and os.environ["SLURM_NTASKS"] != "1"
    if "TORCHELASTIC_RUN_ID" in os.environ or several_tasks:
        raise ValueError(
            "a sweep starts the processes of its runs itself: start it without torchrun or srun, "
            "or make each run a job of its own with hydra/launcher=submitit_slurm"
        )


def find_slots(accelerator: str, jobs_per_device: int) -> tuple[list[str], int]:
    """Return the devices, each as often as it takes a run, and the CPU threads of each run.

    Raises:
        ValueError: `jobs_per_device` is less than 1.
    """
    if jobs_per_device < 1:
        raise ValueError(f"sweep.jobs_per_device={jobs_per_device} must be at least 1")
    import torch

    devices = ["cpu"]
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = [str(index) for index in range(torch.cuda.device_count())]
        devices = visible.split(",") if visible else every
    slots = devices * jobs_per_device
    return slots, max(1, cpu_count() // len(slots))
