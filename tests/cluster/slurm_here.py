"""A real SLURM of one node, this machine, without systemd, cgroups or accounting; for as long as a test needs it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What submitit asks of accounting, answered by the controller.
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for job in "$@"; do
    [[ $job =~ ^[0-9]+$ ]] && squeue --noheader --states=all --array --jobs "$job" --format="%i|%T|%N" 2>/dev/null
done
exit 0
"""


def missing() -> str:
    """Why SLURM cannot be started here; empty if it can."""
    for command in ("slurmctld", "slurmd", "munged", "munge"):
        if shutil.which(command) is None and not Path("/usr/sbin", command).exists():
            return f"{command} is not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start SLURM's daemons"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the daemons, their files below a folder, and gives what its clients need in the environment."""
    host, ports = socket.gethostname().partition(".")[0], [_free_port(), _free_port()]
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    sacct, conf = folder / "bin" / "sacct", folder / "slurm.conf"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    # A job has a core; where there is one only, two can still have half of it each.
    cores = max(2, len(os.sched_getaffinity(0)), os.cpu_count())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    conf.write_text(f"""
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
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
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    environment = {
        "SLURM_CONF": str(conf),
        "PATH": f"{sacct.parent}:/usr/sbin:{os.environ['PATH']}",
    }
    munge = _start_munge()
    try:
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([f"/usr/sbin/{daemon}", "-f", str(conf)], check=True)
        deadline = time.monotonic() + 30
        while ask(environment, "sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.1)
        yield environment
    finally:
        ask(environment, "scancel", "--user=root", "--signal=KILL", "--full")
        for pid in [*folder.glob("slurm*.pid"), *([munge] if munge else [])]:
            os.kill(int(pid.read_text()), 15)


def _start_munge() -> Path | None:
    """Starts what tells SLURM's daemons who asks, if it does not run, and gives the file with its process's number."""
    if subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode == 0:
        return None
    for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(folder).mkdir(mode=0o755, exist_ok=True)
        shutil.chown(folder, "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
    return Path("/run/munge/munged.pid")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ask(environment: dict[str, str], *command: str) -> str:
    """What a client of SLURM's answers."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()
