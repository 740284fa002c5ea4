"""A real SLURM of one node, this machine, without systemd, cgroups or accounting."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from tempfile import gettempdir

from interruptible_run import free_port

TIMEOUT = 120  # seconds; generous, as the machine may be busy

# What submitit asks accounting for, answered by the controller.
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for job in "$@"; do
    [[ $job =~ ^[0-9]+$ ]] &&
        squeue --noheader --states=all --array --jobs "$job" --format="%i|%T|%N" 2>/dev/null
done
exit 0
"""

CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=30
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_unavailable() -> str:
    """Return why SLURM cannot be started here; empty if it can."""
    for command in ("slurmctld", "slurmd", "munged", "munge"):
        if shutil.which(command) is None and not Path("/usr/sbin", command).exists():
            return f"{command} is not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start SLURM's daemons"


@contextmanager
def start_slurm(directory: Path) -> Iterator[dict[str, str]]:
    """Start the daemons, and yield the environment variables that SLURM's commands need.

    Waits until no other worker of pytest has a SLURM: whoever started munged stops it, and jobs of
    two SLURMs have the same numbers, from which Lightning derives its port.
    """
    # Released when this process closes the file or ends; the daemons do not inherit it.
    with open(Path(gettempdir(), "slurm-of-tests.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _start_daemons(directory) as environment:
            yield environment


@contextmanager
def _start_daemons(directory: Path) -> Iterator[dict[str, str]]:
    for name in ("state", "spool", "bin"):
        (directory / name).mkdir()
    directory.chmod(0o755)
    sacct, config = directory / "bin" / "sacct", directory / "slurm.conf"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    config.write_text(
        CONFIG.format(
            directory=directory,
            host=gethostname().partition(".")[0],
            controller_port=free_port(),
            node_port=free_port(),
            # Each task gets a core, and the tests need two at once.
            cores=max(2, os.cpu_count()),
            memory=memory,
        )
    )
    environment = {
        "SLURM_CONF": str(config),
        "PATH": f"{sacct.parent}:/usr/sbin:{os.environ['PATH']}",
    }
    munge_pid_file = _start_munge()
    try:
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([f"/usr/sbin/{daemon}", "-f", str(config)], check=True)
        deadline = time.monotonic() + TIMEOUT
        while ask(environment, "sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < deadline, (directory / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.1)
        yield environment
    finally:
        ask(environment, "scancel", "--user=root", "--signal=KILL", "--full")
        for path in [*directory.glob("slurm*.pid"), *([munge_pid_file] if munge_pid_file else [])]:
            os.kill(int(path.read_text()), signal.SIGTERM)


def _start_munge() -> Path | None:
    """Start the daemon that authenticates users unless it runs, and return its PID file."""
    if subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode == 0:
        return None
    for directory in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(directory).mkdir(mode=0o755, exist_ok=True)
        shutil.chown(directory, "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
    return Path("/run/munge/munged.pid")


def ask(environment: dict[str, str], *command: str) -> str:
    """Return what one of SLURM's commands prints."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()
