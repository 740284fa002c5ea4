"""experiments/gpu/call.sh: what each call runs, within which limits, and what it leaves behind."""

import json
import os
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT

from src.config import compose_config, find_run_dir

CALL = ROOT / "experiments" / "gpu" / "call.sh"
# Stands in for Python: records its arguments; a run makes its output directory.
RECORDER = """#!{python}
import json, os, sys, time
from pathlib import Path
arguments = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
for argument in arguments:
    if argument.startswith("output_dir="):
        Path(argument.partition("=")[2]).mkdir(parents=True, exist_ok=True)
print("output of", *arguments[:2])
time.sleep(1000 if "model=plain20" in arguments else 0)
sys.exit(3 if "recipe.iterations=4000" in arguments else 0)
"""


@pytest.fixture
def call(tmp_path):
    """Return a function that makes a call; it returns the process and what Python was asked."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(RECORDER.format(python=sys.executable))
    python.chmod(0o755)

    def run(number, *overrides, **variables):
        names = {"PYTHON": python, "CALLS": calls, "RUNS": tmp_path / "runs"} | variables
        environment = os.environ | {name: str(value) for name, value in names.items()}
        command = [CALL, number, tmp_path / "out", *overrides]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [json.loads(line) for line in lines]

    return run


def statuses(tmp_path):
    lines = (tmp_path / "out" / "statuses.txt").read_text().splitlines()
    return [tuple(line.rsplit(" ", 1)) for line in lines]


def test_the_first_call_probes_and_runs_the_tests_that_need_a_gpu(call, tmp_path):
    done, asked = call("1")
    assert done.returncode == 0
    assert asked[0] == ["experiments/gpu/probe.py"]
    assert asked[1][:4] == ["-m", "pytest", "-m", "gpu"]
    assert statuses(tmp_path) == [("probe", "0"), ("tests", "0")]
    assert "output of -m pytest" in (tmp_path / "out" / "tests.log").read_text()


def test_a_failure_stops_nothing_and_the_runs_come_back_in_one_file(call, tmp_path):
    _, asked = call("2", "trainer.accelerator=gpu")
    assert [name for name, status in statuses(tmp_path) if status == "3"] == [
        *(f"mode-{mode}" for mode in ("none", "cudagraph", "inductor", "inductor+cudagraph")),
        *("interrupted", "resumed"),
    ]
    assert ("step", "0") in statuses(tmp_path)
    with tarfile.open(tmp_path / "out" / "runs.tgz") as tar:
        assert sum(name.endswith("inductor+cudagraph") for name in tar.getnames()) == 1
    assert asked[0][-1] == "trainer.accelerator=gpu"


@pytest.mark.slow
def test_a_call_ends_at_its_limit_and_says_what_it_did_not_try(call, tmp_path):
    call("3", LIMIT=15)
    assert statuses(tmp_path) == [
        ("resnet20", "0"),
        ("plain20", "124"),  # of timeout
        ("resnet56 not", "tried"),
        ("plain56 not", "tried"),
    ]


def test_an_unknown_call_is_an_error(call):
    done, asked = call("6")
    assert (done.returncode, asked) == (2, [])
    assert done.stderr == "there is no call 6: 1, 2, 3, 4 or 5\n"


@pytest.mark.parametrize("number", ["2", "4", "5"])
def test_each_training_command_composes(call, tmp_path, number):
    _, asked = call(number)
    trained = [arguments[2:] for arguments in asked if arguments[:2] == ["-m", "src.train"]]
    assert trained
    for arguments in trained:
        first = [a.partition(",")[0] for a in arguments if a != "-m"]
        # What needs a GPU is not asked of this machine.
        assert find_run_dir(compose_config(*first)).config["data"]["val_images"] == 0
