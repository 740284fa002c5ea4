"""A run as several processes, maybe a job of a cluster: who started them, how long they wait for each other, and the
way back into the queue."""

import os
import subprocess
from datetime import timedelta

from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning import Trainer
from torch.distributed.distributed_c10d import _set_pg_timeout

START = timedelta(minutes=10)  # for all processes to be there: the imports of some may come from a slow disk
PATIENCE = timedelta(seconds=50)  # then, with one that does not answer the others


def shorten_timeout(trainer: Trainer) -> None:
    """Ends the long wait for the processes of a run to start, as they have."""
    if trainer.world_size > 1:
        _set_pg_timeout(PATIENCE)


def slurm() -> list[SLURMEnvironment]:
    """What Lightning needs to know where srun starts the processes; src/preemption.py requeues rather than Lightning.

    Raises ValueError if the job has several tasks and this process is not one of them.
    """
    if _of_torchrun() or not SLURMEnvironment.detect():
        return []
    if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_STEP_ID" not in os.environ:
        raise ValueError("this SLURM job has several tasks: start them with srun python -m src.train ...")
    if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError("say --nodes and --ntasks-per-node to sbatch or srun, not --ntasks")
    return [SLURMEnvironment(auto_requeue=False)]


def check_world_size(trainer: Trainer) -> None:
    """Raises ValueError if torchrun or srun started other processes than the config has devices.

    Lightning does not look, and each process would believe that the run is its own.
    """
    if _of_torchrun():
        launcher, nodes, processes = "torchrun", "GROUP_WORLD_SIZE", "WORLD_SIZE"
    elif SLURMEnvironment.detect():
        launcher, nodes, processes = "SLURM", "SLURM_NNODES", "SLURM_NTASKS"
    else:
        return
    nodes, processes = int(os.environ[nodes]), int(os.environ[processes])
    if (nodes, processes) != (trainer.num_nodes, trainer.num_nodes * trainer.num_devices):
        raise ValueError(
            f"{launcher} has {processes} processes on {nodes} nodes for this run, the config {trainer.num_devices} on "
            f"each of {trainer.num_nodes}: say trainer.devices={processes // nodes} trainer.num_nodes={nodes}"
        )


def _of_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def requeue() -> str:
    """Puts the SLURM job of this process back into the queue, and says in words whether it is there.

    Only a job that is running goes back: not one that was cancelled, or whose time is over.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "the same command goes on"
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the number alone can mean the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    state = _answer("squeue", "--noheader", "--format=%T", "--jobs", job)
    why = _answer("scontrol", "requeue", job) if state == "RUNNING" else f"the job is {state.lower()}"
    return f"not requeued here ({why}); the same command goes on" if why else "requeued"


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return (done.stdout + done.stderr).strip()
