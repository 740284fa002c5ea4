"""How the runs of a sweep become processes on devices: each in one of its own, the longest first.

A fork server has the heavy imports loaded and touches no device; every run is forked from it, so that one that fails,
is killed or runs out of memory takes nothing with it. A run's process ends itself when the sweep's ends, however that
comes about.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from src.runs.run_dir import LockedError, RunDir

# What a launcher outside may have left behind, and what would make a run believe that it is part of another.
OF_A_LAUNCHER = "LOCAL_RANK RANK WORLD_SIZE NODE_RANK GROUP_RANK MASTER_ADDR MASTER_PORT PL_GLOBAL_SEED".split()
OF_A_LAUNCHER += "SLURM_NTASKS SLURM_JOB_ID".split()
BAR = "{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
HEAVY = ["src.training.trainer", "src.data.cifar10", "src.models.resnet"]


class SweepError(ValueError):
    """A run of a sweep failed."""


@dataclass(eq=False)
class Job:
    """One run of a sweep, with the overrides that the command line gave it."""

    folder: RunDir
    overrides: list[str]
    process: BaseProcess | None = None
    devices: list[str] = field(default_factory=list)  # those that it was given
    started: float = 0.0
    ended: float | None = None
    done: float = 0.0  # the part of its cost that its folder told of when it was last looked at

    @property
    def cost(self) -> int:
        """Iterations times batch times depth: in proportion to the time that it takes."""
        recipe, model = self.folder.config["recipe"], self.folder.config["model"]
        return recipe["iterations"] * recipe["batch_size"] * int(model.get("n") or model.get("depth") or 1)

    @property
    def devices_wanted(self) -> float:
        devices = self.folder.config["trainer"]["devices"]
        if isinstance(devices, int) and devices > 0:
            return devices
        return len(devices) if isinstance(devices, list) else math.inf  # auto and -1 are all

    def look(self) -> None:
        part = 1 if self.folder.summary else self.folder.reached / self.folder.config["recipe"]["iterations"]
        self.done = part * self.cost


class Sweep:
    """Runs jobs until none is left; a failed one is told of at once and does not stop the others.

    Args:
        slots: the devices, each as often as it takes a job: ["0", "1"] are two GPUs, ["cpu"] is the CPU.
        threads: of each job.
    """

    def __init__(self, jobs: Iterable[Job], slots: Sequence[str], threads: int) -> None:
        jobs = {job.folder.path: job for job in jobs}.values()  # two commands may ask for one run
        self.finished = [job for job in jobs if job.folder.finished]
        self.waiting = sorted((job for job in jobs if not job.folder.finished), key=lambda job: -job.cost)
        self.running: list[Job] = []
        self.failed: dict[Job, str] = {}
        self.free, self.devices, self.threads = list(slots), set(slots), threads
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(HEAVY)

    def run(self) -> None:
        """Runs them all. Raises SweepError at the end if one failed, and ValueError where others run them all, too."""
        if "TORCHELASTIC_RUN_ID" in os.environ or ("SLURM_STEP_ID" in os.environ and os.environ["SLURM_NTASKS"] != "1"):
            raise ValueError(
                "a sweep starts the processes of its runs itself: leave torchrun or srun away, or make each run a job "
                "of its own by hydra/launcher=submitit_slurm"
            )
        everything = [*self.finished, *self.waiting]
        total, before = sum(job.cost for job in everything), len(self.finished)
        where = f"{len(self.free)} at a time, {self.threads} threads each"
        tqdm.write(f"{len(everything)} runs, {before} of them finished before; {where}")
        for job in self.waiting:
            job.folder.plan()
        for job in everything:
            job.look()
        self.bar = tqdm(total=total, initial=int(sum(job.done for job in everything)), disable=None, bar_format=BAR)
        try:
            while self.waiting or self.running:
                self._start_what_fits()
                self._wait()
                self.bar.n = int(sum(job.done for job in everything))
                self.bar.refresh()
        finally:
            for job in self.running:
                kill(job.process)
            self.bar.close()
        width = max(len(str(job.folder.path)) for job in everything)
        print("\n" + "\n".join(self._line(job, width) for job in sorted(everything, key=lambda job: job.folder.path)))
        if self.failed:
            raise SweepError(f"{len(self.failed)} of {len(everything)} runs failed; the same command tries them again")

    def _start_what_fits(self) -> None:
        for job in list(self.waiting):
            wanted = min(job.devices_wanted, len(self.devices))
            devices = sorted(set(self.free), key=self.free.index)[:wanted]
            if len(devices) < wanted:
                break  # the longest goes first, also if a shorter one would fit
            for device in devices:
                self.free.remove(device)
            self.waiting.remove(job)
            self._start(job, devices)

    def _start(self, job: Job, devices: list[str]) -> None:
        job.folder.error.unlink(missing_ok=True)
        arguments = (job.folder, job.overrides, devices, self.threads)
        job.process = self.context.Process(target=run_job, args=arguments, name=job.folder.path.name)
        job.devices, job.started = devices, time.monotonic()
        job.process.start()
        self.running.append(job)
        tqdm.write(f"started   {job.folder.path} on {', '.join(devices)}")

    def _wait(self) -> None:
        """Waits for a second or until a job ends, and writes down how it ended."""
        connection.wait([job.process.sentinel for job in self.running], timeout=1)
        for job in self.running:
            job.look()
        for job in [job for job in self.running if not job.process.is_alive()]:
            self.running.remove(job)
            self.free += job.devices
            job.ended = time.monotonic()
            kill(job.process)  # what it may have left behind
            if job.folder.finished:
                self.finished.append(job)
                tqdm.write(f"finished  {self._line(job)}")
                continue
            code = job.process.exitcode
            if code < 0:
                job.folder.fail(f"killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -9 else ''}")
            other = "see its log.txt" if job.folder.path.exists() else "its folder was removed or moved while it ran"
            self.failed[job] = job.folder.error.read_text() if job.folder.error.exists() else other
            tqdm.write(f"FAILED    {self._line(job)}", file=sys.stderr)

    def _line(self, job: Job, width: int = 0) -> str:
        """How a job stands, in a line."""
        name = f"{job.folder.path!s:{width}}"
        minutes = f", {(job.ended - job.started) / 60:.1f} min" if job.ended else ", finished before"
        if job in self.failed:
            return f"{name}: {self.failed[job].splitlines()[0]}"
        summary, protocol = job.folder.summary, job.folder.config["protocol"]
        errors = f"training error {summary['train_error']:6.2f}%, test error {summary['test_error']:6.2f}%"
        test = job.folder.tested(protocol)
        more = f", by {protocol} {test['test_error']:6.2f}%" if test else ""
        return f"{name}: {errors}{more}{minutes}"


def kill(process: BaseProcess) -> None:
    """Ends a job's process and those that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def run_job(folder: RunDir, overrides: list[str], devices: list[str], threads: int) -> None:
    """The life of a job's process. Its exit status is 0 if the run is finished."""
    os.setsid()
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    for name in OF_A_LAUNCHER:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if devices[0] != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    sys.argv = [sys.argv[0], *overrides, "hydra.mode=RUN"]  # from which Lightning starts further devices' processes
    import torch

    from src import train
    from src.cli import format_error

    torch.set_num_threads(threads)
    with open(folder.path / "log.txt", "a", buffering=1) as log, redirect_stdout(log):
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            train.run(folder)
        except LockedError as error:
            print(error)
            sys.exit(1)
        except Exception as error:
            folder.fail(format_error(error))
            raise


def _end_with_the_sweep() -> None:
    parent_process().join()
    os.killpg(0, signal.SIGKILL)


def slots(accelerator: str, jobs_per_device: int) -> tuple[list[str], int]:
    """The devices of this machine, each as often as it takes a job, and the threads of each job.

    Raises ValueError if `jobs_per_device` is less than 1.
    """
    if jobs_per_device < 1:
        raise ValueError(f"sweep.jobs_per_device={jobs_per_device} must be at least 1")
    import torch

    from src.runs.environment import cpu_count

    devices = ["cpu"]
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return devices * jobs_per_device, max(1, cpu_count() // (len(devices) * jobs_per_device))
