"""The MPS daemon of a sweep, played by a script that records what it is asked."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import call_here
from conftest import ROOT

from src.training.mps import CONTROL, mps_daemon

TIMEOUT = 60  # seconds; generous, as the machine may be busy
# Writes its arguments, its input and what it sees to `calls`, next to itself.
FAKE = """#!/bin/sh
if [ "$1" = -d ]; then what="daemon $CUDA_VISIBLE_DEVICES"; else read -r what; fi
echo "$what $CUDA_MPS_PIPE_DIRECTORY" >> "$(dirname "$0")/calls"
"""


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """Put the script on the PATH, and return the file in which it records its calls."""
    control = tmp_path / CONTROL
    control.write_text(FAKE)
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_a_daemon_of_the_sweeps_own_sees_all_devices_and_is_shut_down(calls, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/of/another/daemon")
    with suppress(KeyError), mps_daemon(["2", "3"]) as environment:
        directory = environment["CUDA_MPS_PIPE_DIRECTORY"]
        assert environment == dict.fromkeys(environment, directory)
        assert Path(directory).is_dir()
        assert calls.read_text() == f"daemon  {directory}\n"
        raise KeyError  # a sweep that fails
    assert calls.read_text() == f"daemon  {directory}\nquit {directory}\n"
    assert not Path(directory).exists()


def test_the_daemon_is_shut_down_when_the_sweep_is_killed(calls):
    script = f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
    script += "from src.training.mps import mps_daemon\n"
    script += "with mps_daemon(['0']): print('there', flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as sweep:
        assert sweep.stdout.readline() == b"there\n"
        sweep.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT
    while "quit" not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_daemon_that_does_not_start_is_an_error_with_its_reason(calls):
    calls.with_name(CONTROL).write_text("#!/bin/sh\necho no permission\nexit 1\n")
    with pytest.raises(OSError, match=r"does not start \(no permission\): set sweep.mps=false"):
        mps_daemon(["0"]).__enter__()


def test_a_machine_without_mps_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"needs {CONTROL}, a part of NVIDIA's driver"):
        mps_daemon(["0"]).__enter__()


def test_a_sweep_on_the_cpu_refuses_mps(capsys, tmp_path):
    sweep = ["-m", "sweep.mps=true", "trainer.accelerator=cpu", "seed=0,1"]
    result = call_here(capsys, *sweep, f"output_dir={tmp_path}/runs")
    assert result.returncode == 1
    assert result.stderr == "sweep.mps=true is for GPUs: set sweep.mps=false"
    assert list(tmp_path.rglob("config.yaml")) == []
