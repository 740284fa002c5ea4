"""Runs started by torchrun, srun or submitit, on two hosts and on a real SLURM.

All are compared with an ordinary run. Each of these tests starts several Pythons, so they are slow.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import train_and_wait
from conftest import ROOT
from interruptible_run import free_port
from run_comparison import assert_same_run
from slurm_here import ask, start_slurm, why_unavailable
from train_and_wait import WAIT_AT

from src.runs.run_dir import RunDir

pytestmark = pytest.mark.slow

ITERATIONS = 50
RUN = [
    "n=1",
    f"recipe.iterations={ITERATIONS}",
    "recipe.eval_every=20",
    "recipe.log_every=2",
    "recipe.checkpoint_every=20",
    "checkpoint_seconds=0",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
]
TRAIN = ["-m", "src.train", *RUN]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # so that sums have the same order everywhere
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT = 300  # seconds; generous, as the machine may be busy


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Start a command; its stderr goes to its stdout."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ONE_THREAD | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(command: list[str], **environment: str) -> tuple[int, str]:
    """Return the exit status of a command and what it prints."""
    process = start(command, **environment)
    output, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, output


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; `what` is the message if it does not come true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def logged_iteration(output_dir: Path) -> int:
    """Return the last iteration that the only run of a directory has logged."""
    (path, *_) = [*output_dir.rglob("metrics.csv"), None]
    return RunDir(path.parent, {}).last_iteration if path else 0


def assert_only_run_is(output_dir: Path, expected: RunDir) -> None:
    """Assert that a directory has one run, bitwise identical to another one."""
    (path,) = output_dir.glob("digits/*")
    assert path.name == expected.path.name
    run_dir = RunDir.open(path)
    assert run_dir.finished
    assert_same_run(run_dir, expected, ITERATIONS)


@pytest.fixture(scope="module")
def ordinary_run(tmp_path_factory) -> RunDir:
    """Return a run on two ranks that Lightning started and nothing interrupted."""
    output_dir = tmp_path_factory.mktemp("ordinary")
    command = [sys.executable, *TRAIN, "trainer.devices=2", f"output_dir={output_dir}"]
    status, output = run(command)
    assert status == 0, output
    (path,) = output_dir.glob("digits/*")
    return RunDir.open(path)


@pytest.mark.fault_injection("processes", "two ranks started by torchrun")
def test_two_ranks_of_torchrun_are_one_run(ordinary_run, tmp_path):
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]
    status, output = run([*torchrun, *TRAIN, "trainer.devices=2", f"output_dir={tmp_path}"])
    assert status == 0, output
    assert_only_run_is(tmp_path, ordinary_run)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable; their names are also those of their interfaces."""
    mark = uuid.uuid4().hex[:6]
    first, second = f"a{mark}", f"b{mark}"
    commands = [
        f"ip netns add {first}",
        f"ip netns add {second}",
        f"ip link add {first} netns {first} type veth peer name {second} netns {second}",
    ]
    for name, address in zip((first, second), ADDRESSES, strict=True):
        commands += [
            f"ip -n {name} address add {address}/24 dev {name}",
            f"ip -n {name} link set lo up",
            f"ip -n {name} link set {name} up",
        ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True, text=True)
        yield [first, second]
    except FileNotFoundError:
        pytest.skip("ip is not installed: apt-get install iproute2")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this user may not make a network: {error.stderr.strip()}")
    finally:
        for name in (first, second):
            subprocess.run(f"ip netns delete {name} || true", shell=True, capture_output=True)


@pytest.mark.fault_injection("machines", "torchrun on two hosts with a network between them")
def test_one_rank_on_each_of_two_hosts_train_as_two_ranks_on_one(ordinary_run, hosts, tmp_path):
    port, processes = free_port(), []
    for node_rank, host in enumerate(hosts):
        nodes = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node_rank}"]
        nodes += [f"--master-addr={ADDRESSES[0]}", f"--master-port={port}"]
        train = [*TRAIN, "trainer.num_nodes=2", f"output_dir={tmp_path}"]
        command = ["ip", "netns", "exec", host, *TORCHRUN, *nodes, *train]
        processes.append(start(command, GLOO_SOCKET_IFNAME=host))
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_only_run_is(tmp_path, ordinary_run)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start SLURM, and return the environment variables that its commands need."""
    if why_unavailable():
        pytest.skip(why_unavailable())
    with start_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | ONE_THREAD


def submit(cluster: dict[str, str], output: Path, options: str, *command: str) -> str:
    """Submit a job that runs a Python command, and return its number."""
    script = output.with_suffix(".sh")
    script.write_text(
        "#!/bin/bash\n"
        f"#SBATCH --chdir={ROOT} --output={output} --open-mode=append {options}\n"
        f"srun {sys.executable} {' '.join(command)}\n"
    )
    return ask(cluster, "sbatch", "--parsable", str(script))


def job_state(cluster: dict[str, str], job: str) -> str:
    command = ["squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job]
    return ask(cluster, *command)


@pytest.mark.very_slow
@pytest.mark.fault_injection(
    "machines", "a SLURM job of two ranks interrupted, first both, then one, and requeued"
)
def test_a_preempted_job_is_requeued_and_resumes_bit_exactly(cluster, ordinary_run, tmp_path):
    output, runs = tmp_path / "output", tmp_path / "runs"
    overrides = [*RUN, "trainer.devices=2", f"output_dir={runs}"]
    command = [train_and_wait.__file__, str(tmp_path), *overrides]
    job = submit(cluster, output, "--ntasks-per-node=2", *command)

    def starts_again() -> bool:
        # A requeued job waits two minutes, and in the second of its end it cannot be started: it
        # may be pending, then completing, then pending again.
        ask(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
        return job_state(cluster, job) == "RUNNING"

    for iteration in WAIT_AT:
        waits = tmp_path / f"waits-at-{iteration}"
        wait_until(waits.exists, f"not at iteration {iteration}")
        if iteration == WAIT_AT[0]:
            ask(cluster, "scancel", "--signal=USR1", job)
        else:
            (lock,) = runs.rglob("lock")
            os.kill(int(lock.read_text().split()[1]), signal.SIGTERM)
        wait_until(lambda: job_state(cluster, job) == "PENDING", "not requeued")
        wait_until(starts_again, "does not start again")

    wait_until(lambda: job_state(cluster, job) == "COMPLETED", "not finished")
    text = output.read_text()
    signals = re.findall(r"interrupted by (\w+): saved at iteration \d+; requeued", text)
    assert signals == ["SIGUSR1", "SIGTERM"], text
    assert text.count("resumes at iteration") == 2, text
    assert_only_run_is(runs, ordinary_run)


@pytest.fixture
def sweep() -> list[str]:
    """Return the command of a sweep whose runs are SLURM jobs."""
    if not importlib.util.find_spec("submitit"):
        pytest.skip("hydra-submitit-launcher is not installed")
    return [sys.executable, "-m", "src.train", "-m", "hydra/launcher=submitit_slurm", *RUN]


@pytest.mark.fault_injection("machines", "a sweep as SLURM jobs, one of which fails")
def test_each_run_of_a_submitit_sweep_is_a_job_and_the_failed_one_is_named(
    cluster, sweep, tmp_path
):
    command = [*sweep, "model=plain,resnet,resnet20", f"output_dir={tmp_path}"]
    status, output = run(command, **cluster)
    assert status == 1, output
    assert "model=resnet20 has its own depth: n=1 needs model=plain" in output
    jobs = sorted(path.name for path in (tmp_path / ".submitit").glob("*_*/"))
    assert [name.partition("_")[2] for name in jobs] == ["0", "1", "2"]
    finished = sorted(path.parent.name for path in tmp_path.glob("*/*/summary.json"))
    assert [name.partition("-")[0] for name in finished] == ["plain8", "resnet8"]
    assert finished == sorted(path.name for path in (tmp_path / "digits").iterdir())


@pytest.mark.fault_injection("machines", "a SLURM job that its user cancels")
def test_a_canceled_job_saves_and_is_not_requeued_and_its_sweep_reports_it(
    cluster, sweep, tmp_path
):
    command = [*sweep, "recipe.iterations=100000", f"output_dir={tmp_path}"]
    process = start(command, **cluster)
    wait_until(lambda: process.poll() is not None or logged_iteration(tmp_path) >= 2, "no rows")
    ask(cluster, "scancel", "--user=root")
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, output
    (line,) = output.splitlines()
    assert line.endswith("has not produced any output (state: CANCELLED)")
    (log,) = tmp_path.rglob("*_log.out")
    pattern = (
        r"interrupted by SIGTERM: saved at iteration \d+; "
        r"not requeued \(the job is completing\); the same command resumes"
    )
    assert re.search(pattern, log.read_text())
    assert ask(cluster, "squeue", "--noheader") == ""
