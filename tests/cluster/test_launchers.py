"""Runs whose processes torchrun, srun or submitit start, on two hosts and on a real SLURM too, against a plain run."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from slurm_here import ask, missing, slurm

RUN = "n=1 recipe.iterations=50 recipe.eval_every=20 recipe.log_every=2 recipe.checkpoint_every=20".split()
RUN += ["trainer.precision=32-true", "trainer.accelerator=cpu"]
TRAIN = ["-m", "src.train", *RUN]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums in the same order everywhere
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def start(command: list[str], **environment: str) -> subprocess.Popen:
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ONE_THREAD | environment, **outputs)


def run(command: list[str], **environment: str) -> tuple[int, str]:
    """The exit status of a command and what it printed."""
    process = start(command, **environment)
    out, _ = process.communicate(timeout=200)
    return process.returncode, out


def wait_for(done, what: str) -> None:
    deadline = time.monotonic() + 100
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def reached(runs: Path) -> int:
    """The iteration that the one run below a folder has logged last."""
    lines = [
        line for path in runs.rglob("metrics.csv") for line in path.read_text().splitlines()[1:]
    ]
    return int(lines[-1].split(",")[0]) if lines else 0


def assert_one_run_as(runs: Path, other: Path) -> None:
    """The same rows and the same bits, in one folder, which is called the same."""
    (folder,), (other,) = (list(path.glob("*/*")) for path in (runs, other))
    assert folder.name == other.name and (folder / "summary.json").exists()
    for name in ("metrics.csv", "layers.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    a, b = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
        for path in (folder, other)
    )
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    for state, other_state in zip(a["optimizer_states"], b["optimizer_states"], strict=True):
        torch.testing.assert_close(state["state"], other_state["state"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The run folders of a run on two devices that nothing else started and nothing stopped."""
    runs = tmp_path_factory.mktemp("plain")
    code, out = run([sys.executable, *TRAIN, "trainer.devices=2", f"output_dir={runs}"])
    assert code == 0, out
    return runs


@pytest.mark.fault_injection("processes", "two started by torchrun")
def test_torchrun_starts_one_run_in_one_folder(plain, tmp_path):
    command = [
        *TORCHRUN,
        "--standalone",
        "--nproc-per-node=2",
        *TRAIN,
        "trainer.devices=2",
        f"output_dir={tmp_path}",
    ]
    code, out = run(command)
    assert code == 0, out
    assert_one_run_as(tmp_path, plain)


@pytest.fixture
def hosts():
    """Two hosts, as far as the network goes: namespaces of it, joined by a cable. Their names are their interfaces'."""
    mark = uuid.uuid4().hex[:6]
    names = [f"a{mark}", f"b{mark}"]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(
        f"ip link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}"
    )
    for name, address in zip(names, ADDRESSES, strict=True):
        commands.append(f"ip -n {name} address add {address}/24 dev {name}")
        commands += [f"ip -n {name} link set {interface} up" for interface in ("lo", name)]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True, text=True)
        yield names
    except FileNotFoundError:
        pytest.skip("ip is not installed: apt-get install iproute2")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network of one's own may be made here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(f"ip netns delete {name} || true", shell=True, capture_output=True)


@pytest.mark.fault_injection("machines", "torchrun on two hosts with a network between them")
def test_two_hosts_train_as_two_devices_of_one_do(plain, hosts, tmp_path):
    started = []
    for rank, host in enumerate(hosts):
        where = [
            f"--nnodes=2 --nproc-per-node=1 --node-rank={rank} --master-addr={ADDRESSES[0]} --master-port=29513"
        ]
        command = [
            "ip",
            "netns",
            "exec",
            host,
            *TORCHRUN,
            *where[0].split(),
            *TRAIN,
            "trainer.num_nodes=2",
        ]
        started.append(start([*command, f"output_dir={tmp_path}"], GLOO_SOCKET_IFNAME=host))
    outs = [process.communicate(timeout=150)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outs
    assert_one_run_as(tmp_path, plain)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A SLURM, as the environment that its clients need."""
    if missing():
        pytest.skip(missing())
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | ONE_THREAD


def submit(cluster: dict[str, str], out: Path, options: str, *overrides: str) -> str:
    """The number of a job that trains."""
    script = f"#!/bin/bash\n#SBATCH --chdir={ROOT} --output={out} --open-mode=append {options}\n"
    out.with_suffix(".sh").write_text(
        f"{script}srun {sys.executable} {' '.join([*TRAIN, *overrides])}\n"
    )
    return ask(cluster, "sbatch", "--parsable", str(out.with_suffix(".sh")))


def state(cluster: dict[str, str], job: str) -> str:
    return ask(cluster, "squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job)


@pytest.mark.fault_injection(
    "machines", "a SLURM job of two processes told to stop, first both, then one, and requeued"
)
def test_a_preempted_job_is_requeued_and_goes_on_in_its_folder_to_the_same_bits(
    cluster, plain, tmp_path
):
    out = tmp_path / "out"
    job = submit(
        cluster, out, "--ntasks-per-node=2", "trainer.devices=2", f"output_dir={tmp_path}/runs"
    )
    for at in (6, 24):
        wait_for(lambda at=at: reached(tmp_path / "runs") >= at, f"not at {at}")
        if at == 6:
            ask(cluster, "scancel", "--signal=USR1", job)
        else:
            (lock,) = tmp_path.rglob("lock")
            os.kill(int(lock.read_text().split()[1]), signal.SIGTERM)
        wait_for(lambda: state(cluster, job) == "PENDING", "not requeued")
        time.sleep(2)  # in the second of its end a job cannot start
        ask(
            cluster, "scontrol", "update", f"JobId={job}", "StartTime=now"
        )  # rather than in two minutes
    wait_for(lambda: state(cluster, job) == "COMPLETED", "not finished")
    text = out.read_text()
    stopped = re.findall(r"stopped by (\w+): saved at iteration \d+; requeued", text)
    assert (stopped, text.count("goes on at iteration")) == (["SIGUSR1", "SIGTERM"], 2), text
    assert_one_run_as(tmp_path / "runs", plain)


@pytest.fixture
def sweep() -> list[str]:
    if not importlib.util.find_spec("submitit"):
        pytest.skip("hydra-submitit-launcher is not installed")
    return [sys.executable, "-m", "src.train", "-m", "hydra/launcher=submitit_slurm", *RUN]


@pytest.mark.fault_injection("machines", "a sweep as SLURM jobs, one of which fails")
def test_submitit_makes_each_net_a_job_and_says_which_failed(cluster, sweep, tmp_path):
    code, out = run([*sweep, "model=plain,resnet,resnet20", f"output_dir={tmp_path}"], **cluster)
    assert code == 1 and "model=resnet20 has its own depth: n=1 needs model=plain" in out, out
    jobs = sorted(path.name for path in (tmp_path / ".submitit").glob("*_*/"))
    assert [name.partition("_")[2] for name in jobs] == ["0", "1", "2"]
    finished = sorted(
        path.parent.name.partition("-")[0] for path in tmp_path.glob("*/*/summary.json")
    )
    folders = sorted(path.name.partition("-")[0] for path in (tmp_path / "digits").iterdir())
    assert finished == ["plain8", "resnet8"] == folders


@pytest.mark.fault_injection("machines", "a SLURM job that its user cancels")
def test_a_cancelled_job_saves_and_stays_cancelled_and_its_sweep_says_so(cluster, sweep, tmp_path):
    started = start([*sweep, "recipe.iterations=100000", f"output_dir={tmp_path}"], **cluster)
    wait_for(lambda: started.poll() is not None or reached(tmp_path) >= 2, "no metrics")
    ask(cluster, "scancel", "--user=root")
    out, _ = started.communicate(timeout=100)
    lines = out.splitlines()
    assert started.returncode == 1 and lines[-1].endswith(
        "has not produced any output (state: CANCELLED)"
    ), out
    assert len(lines) == 1
    (log,) = tmp_path.rglob("*_log.out")
    said = "stopped by SIGTERM: saved at iteration .* not requeued here .the job is completing.; the same command goes"
    assert re.search(said, log.read_text())
    assert ask(cluster, "squeue", "--noheader") == ""  # nothing waits or runs
