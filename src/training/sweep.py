"""Run the jobs of a sweep as processes, each with GPUs of its own.

A fork server has the heavy imports loaded and touches no device; every run is forked from it. So a
run that fails, is killed or runs out of memory affects no other, and a further run starts in half a
second. joblib and submitit are not used for this: neither leases GPUs to its jobs.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from src.runs.describe import describe_results
from src.runs.naming import differences
from src.runs.run_dir import RunDir
from src.training.sweep_job import Job, failure, kill, run_job

PRELOADED_MODULES = ["src.training.trainer", "src.data.cifar10", "src.models.resnet"]
BAR_FORMAT = "{percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"


class SweepError(ValueError):
    """A run of a sweep failed."""


class Sweep:
    """Run jobs until none is left; a failed one is reported at once and does not stop the others.

    Args:
        jobs: the runs; those that are finished already are only listed.
        slots: the devices, each as often as it takes a run: ["0", "1"] are two GPUs, ["cpu"] is the
            CPU.
        threads: CPU threads of each run.
        run: executes a run in its process.
        environment: further variables of that process.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        slots: Sequence[str],
        threads: int,
        run: Callable[[RunDir], None],
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        jobs = unique_jobs(jobs)
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
        self.threads, self.run_one, self.environment = threads, run, environment

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
        environment = {"OMP_NUM_THREADS": str(self.threads), **self.environment}
        if devices[0] != "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        arguments = (self.run_one, job.run_dir, job.overrides, environment)
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
        return f"{name}: {describe_results(job.run_dir)}, {duration}"


def unique_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Return one job for each run directory: two commands may ask for one run.

    Raises:
        ValueError: two runs that differ have the same directory.
    """
    by_path: dict[Path, Job] = {}
    for job in jobs:
        path, first = job.run_dir.path, by_path.setdefault(job.run_dir.path, job)
        if first is job:
            continue
        changes = differences(first.run_dir.key, job.run_dir.key, job.run_dir.defaults)
        if changes:
            raise ValueError(
                f"two runs of this sweep have the same directory {path} ({changes}): run them "
                "apart, each with its output_dir=DIRECTORY"
            )
    return [*by_path.values()]


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
