"""A run as several processes: who starts them, how long they wait, and SLURM's queue.

Every use of a private API of Lightning or PyTorch is gathered here, each with its reason.
"""

import math
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed
from torch.distributed.distributed_c10d import _abort_process_group

try:
    from torch.distributed import set_timeout
except ImportError:  # torch before 2.15
    from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

from src.training.callbacks.base import RunCallback
from src.training.devices import count_devices

# Until all processes are there: their imports may come from a slow disk. Afterwards a rank that
# does not answer is lost.
START_TIMEOUT, LOST_PROCESS_TIMEOUT = timedelta(minutes=10), timedelta(seconds=50)


def make_strategy(trainer: dict[str, Any]) -> str | Strategy:
    """Return Lightning's strategy for the `trainer` node of a config.

    DDP does not broadcast buffers at each step: the LightningModule does it before each evaluation.
    """
    strategy = trainer["strategy"]
    if strategy == "ddp" or (strategy == "auto" and is_distributed(trainer)):
        return DDPStrategy(timeout=START_TIMEOUT, broadcast_buffers=False)
    return strategy


def is_distributed(trainer: dict[str, Any]) -> bool:
    """Return whether the `trainer` node of a config asks for more than one process."""
    count = count_devices(trainer["devices"])
    if math.isinf(count):
        on_gpu = trainer["accelerator"] in ("auto", "gpu", "cuda")
        count = torch.cuda.device_count() if on_gpu else 1
    return trainer["num_nodes"] > 1 or count > 1


class LostProcessTimeout(RunCallback):
    """Waits no longer than `LOST_PROCESS_TIMEOUT` for a rank once all have started.

    Comes last among the callbacks: rank 0 may take long to start W&B.
    """

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        """Shorten the timeout of the process group, unless it is NCCL's.

        When NCCL's timeout expires, it kills this process without a message. It keeps the long
        timeout, and the gloo group of `Preemption` finds a lost rank first.
        """
        trainer.strategy.barrier()
        set_gloo_timeout(trainer, LOST_PROCESS_TIMEOUT)


def set_gloo_timeout(trainer: Trainer, timeout: timedelta) -> None:
    """Set how long the operations that follow wait for the other ranks, if they use gloo."""
    if trainer.world_size > 1 and distributed.get_backend() == "gloo":
        set_timeout(timeout)


@contextmanager
def rank_zero_works(trainer: Trainer) -> Iterator[None]:
    """Let the other ranks wait longer for rank 0, which alone does something slow in the block."""
    set_gloo_timeout(trainer, START_TIMEOUT)
    yield
    set_gloo_timeout(trainer, LOST_PROCESS_TIMEOUT)


def abort_nccl() -> None:
    """Abort what waits for a lost rank on the GPU, or this process would never exit."""
    if distributed.get_backend() == "nccl":
        _abort_process_group()


def disable_sigterm_broadcast(trainer: Trainer) -> None:
    """Stop Lightning from asking rank 0 about SIGTERM and waiting for it in each iteration.

    `Preemption` does it without waiting. See Lightning issue 21487 and pull request 21640.
    """
    loop = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor")
    loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]  # noqa: SLF001


@contextmanager
def report_lost_process(trainer: Trainer) -> Iterator[None]:
    """Turn a communication error, raised when a rank died or hangs, into a user's error.

    Raises:
        ChildProcessError: another process of the run died or hangs.
    """
    try:
        yield
    except RuntimeError as error:
        lost = re.search("gloo|nccl|connection|timed out", str(error), re.IGNORECASE)
        if trainer.world_size == 1 or not lost:
            raise
        for process in getattr(trainer.strategy.launcher, "procs", []):  # a hanging one would stay
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
        raise ChildProcessError(
            "another process of this run died or hangs (its own output is above); the same command "
            f"resumes from the last checkpoint ({str(error).splitlines()[0][:150]})"
        ) from error


def cluster_environment() -> ClusterEnvironment:
    """Return the environment that started the processes of this run, for Lightning's Trainer.

    Left to itself, Lightning would also ask mpi4py where that is installed, which can hang
    (Lightning issue 20049), and requeue SLURM's jobs, which `requeue` does.

    Raises:
        ValueError: the SLURM job has several tasks, and this process is not one of them.
    """
    if started_by_torchrun():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return LightningEnvironment()
    if int(os.environ["SLURM_NTASKS"]) > 1:
        if "SLURM_STEP_ID" not in os.environ:
            raise ValueError(
                "this SLURM job has several tasks: start them with srun python -m src.train ..."
            )
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError("pass --nodes and --ntasks-per-node to sbatch or srun, not --ntasks")
    return SLURMEnvironment(auto_requeue=False)


def check_world_size(trainer: Trainer) -> None:
    """Check that torchrun or srun started the processes that the config asks for.

    Lightning does not check it, and each process would execute the whole run by itself.

    Raises:
        ValueError: they started another number of processes.
    """
    if started_by_torchrun():
        launcher, nodes_variable, processes_variable = "torchrun", "GROUP_WORLD_SIZE", "WORLD_SIZE"
    elif SLURMEnvironment.detect():
        launcher, nodes_variable, processes_variable = "SLURM", "SLURM_NNODES", "SLURM_NTASKS"
    else:
        return
    nodes, processes = int(os.environ[nodes_variable]), int(os.environ[processes_variable])
    if (nodes, processes) != (trainer.num_nodes, trainer.num_nodes * trainer.num_devices):
        raise ValueError(
            f"{launcher} started {processes} processes on {nodes} nodes, the config asks for "
            f"{trainer.num_devices} on each of {trainer.num_nodes}: "
            f"set trainer.devices={processes // nodes} trainer.num_nodes={nodes}"
        )


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, also before a Trainer exists."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def started_by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def requeue() -> str:
    """Return the SLURM job of this process to the queue, and say whether it is there.

    Only a running job is requeued: not one that its user cancelled or whose time is over.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "the same command resumes"
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the number alone can mean the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    state = ask_slurm("squeue", "--noheader", "--format=%T", "--jobs", job)
    if state == "RUNNING":
        problem = ask_slurm("scontrol", "requeue", job)
    else:
        problem = f"the job is {state.lower()}"
    return f"not requeued ({problem}); the same command resumes" if problem else "requeued"


def ask_slurm(*command: str) -> str:
    """Return what a SLURM command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return (done.stdout + done.stderr).strip()
