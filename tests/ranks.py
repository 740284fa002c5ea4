"""Tasks on several ranks over gloo, each in a process forked from a server with the imports done.

`trainer.devices=2` on the command line starts a new Python for rank 1, which takes ten times as
long.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from typing import Any

from interruptible_run import FORK_SERVER, free_port
from pytorch_lightning import Callback

from src import train
from src.runs.run_dir import RunDir


def run_on_ranks(world_size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what a task returns on each of `world_size` ranks."""
    port = free_port()
    with ProcessPoolExecutor(world_size, FORK_SERVER) as processes:
        ranks = [
            processes.submit(_run_on_rank, rank, port, task, arguments)
            for rank in range(world_size)
        ]
        return [rank.result() for rank in ranks]


def _run_on_rank(rank: int, port: int, task: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    import torch

    torch.set_num_threads(1)
    return task(*arguments)


def train_and_capture(run_dir: RunDir, callbacks: Sequence[Callback] = ()) -> str:
    """Train as `src.train` does, and return what is printed."""
    with redirect_stdout(io.StringIO()) as printed:
        train.run(run_dir, callbacks)
    return printed.getvalue()
