"""Several processes over gloo, as the devices of one run on a CPU, each forked from a server that has the imports done.

`trainer.devices=2` on the command line starts a second process with all of its imports, which takes ten times as long.
"""

import io
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from typing import Any

from src import train
from src.runs.run_dir import RunDir
from src.training.sweep import HEAVY


def together(world: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a task returns in each of `world` processes, which a trainer in it takes for its devices."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*HEAVY, "src.evaluation.evaluator"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(world, context) as processes:
        ranks = [processes.submit(_as_one_of, rank, port, task, arguments) for rank in range(world)]
        return [rank.result() for rank in ranks]


def _as_one_of(rank: int, port: int, task: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }
    import torch

    torch.set_num_threads(1)
    return task(*arguments)


def said_in_a_run(folder: RunDir) -> str:
    """Trains as `src.train` does, and gives what it printed."""
    with redirect_stdout(io.StringIO()) as said:
        train.run(folder)
    return said.getvalue()
