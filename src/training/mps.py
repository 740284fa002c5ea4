"""NVIDIA's Multi-Process Service, by which the runs of a sweep compute on one GPU at the same time.

Without it they take turns, and a small net leaves most of the GPU idle in its turn.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CONTROL = "nvidia-cuda-mps-control"
# The shell waits for the end of its input, which comes when the sweep ends, however it is stopped.
SCRIPT = '"$0" -d || exit; echo started; read -r _; echo quit | "$0"'
QUIT_TIMEOUT = 60  # seconds


@contextmanager
def mps_daemon(slots: Sequence[str]) -> Iterator[dict[str, str]]:
    """Run an MPS daemon, and yield the environment variables that make a process its client.

    It has a directory of its own, so other daemons are neither used nor shut down.

    Args:
        slots: the devices of the sweep.

    Raises:
        ValueError: they are not GPUs.
        OSError: MPS is not installed, or does not start.
    """
    if "cpu" in slots:
        raise ValueError("sweep.mps=true is for GPUs: set sweep.mps=false")
    control = shutil.which(CONTROL)
    if control is None:
        raise FileNotFoundError(
            f"sweep.mps=true needs {CONTROL}, a part of NVIDIA's driver: set sweep.mps=false"
        )
    with tempfile.TemporaryDirectory(prefix="mps-") as directory:
        client = {"CUDA_MPS_PIPE_DIRECTORY": directory, "CUDA_MPS_LOG_DIRECTORY": directory}
        environment = os.environ | client
        # Clients count devices among those that the daemon sees, so it must see all of them.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        with subprocess.Popen(
            ["sh", "-c", SCRIPT, control],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for the sweep, which then ends the daemon
        ) as shell:
            assert shell.stdin is not None
            assert shell.stdout is not None
            answer = shell.stdout.readline().strip()
            if answer != "started":
                raise OSError(f"{CONTROL} does not start ({answer}): set sweep.mps=false")
            try:
                yield client
            finally:
                shell.stdin.close()
                try:
                    shell.wait(QUIT_TIMEOUT)
                except subprocess.TimeoutExpired:
                    shell.kill()
