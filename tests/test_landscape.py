"""The command that draws loss landscapes."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import call_here
from conftest import ROOT
from interruptible_run import TIMEOUT
from random_run import random_run

from src.evaluation.loss_plane import LossPlane
from src.landscape import parse

MODULE = "src.landscape"


@pytest.fixture
def runs(find):
    """The directories of a plain and a residual net with random weights."""
    paths = []
    for model in ("plain", "resnet"):
        run_dir = find(f"model={model}", "n=1", "trainer.precision=32-true")
        random_run(run_dir)
        paths.append(str(run_dir.path))
    return paths


@pytest.fixture
def landscape(capsys, tmp_path):
    """Call the command in this process with few points and images."""

    def call(*arguments, out="landscape"):
        settings = ["grid=3", "images=20", "accelerator=cpu", f"output_dir={tmp_path / out}"]
        return call_here(capsys, *settings, *arguments, module=MODULE)

    return call


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def test_an_interrupted_command_resumes_and_gives_the_files_of_an_undisturbed_one(
    runs, landscape, tmp_path, monkeypatch
):
    undisturbed = landscape(*runs)
    assert undisturbed.returncode == 0, undisturbed.stderr
    # The profile has 5 points, of which the plane of 9 shares 3.
    assert "measured 22 points in " in undisturbed.stdout
    expected = files(tmp_path / "landscape")
    assert expected.keys() == {
        *(f"digits-{net}8-s0.{end}" for net in ("plain", "resnet") for end in ("csv", "yaml")),
        *(f"{name}.{end}" for name in ("landscape", "profile") for end in ("svg", "png")),
    }

    measure, calls = LossPlane.measure, []

    def interrupted(self, point):
        calls.append(point)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return measure(self, point)

    monkeypatch.setattr(LossPlane, "measure", interrupted)
    stopped = landscape(*runs, out="again")
    assert stopped.returncode == 130
    assert "the same command resumes" in stopped.stderr
    # The profile of both runs is complete, and drawn.
    begun = files(tmp_path / "again")
    assert begun["profile.svg"] == expected["profile.svg"]
    assert "landscape.svg" not in begun
    with open(tmp_path / "again" / "digits-plain8-s0.csv", "a") as file:
        file.write("0.5,0.")  # as if killed while it wrote a row
    resumed = landscape(*runs, out="again")
    assert "measured 9 points in " in resumed.stdout
    assert files(tmp_path / "again") == expected

    finished = landscape(*runs, out="again")
    assert "measured" not in finished.stdout
    assert "written: " in finished.stdout
    assert files(tmp_path / "again") == expected


def test_an_unfinished_run_is_a_message(runs, landscape, tmp_path):
    for missing in ("summary.json", "checkpoints/last.ckpt"):
        (Path(runs[0]) / missing).unlink()
        result = landscape(*runs)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) <= 2
        words = "is not finished: rerun" if "json" in missing else "not a run directory with a"
        assert words in result.stderr
        assert runs[0] in result.stderr
    assert not (tmp_path / "landscape").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to draw: pass run directories"),
        (["run", "gird=25"], "there is no key gird; did you mean grid?"),
        (["run", "grid=1"], "grid=1 must be at least 2"),
        (["run", "grid=many"], "grid=many must be like grid=25"),
        (["run", "grid=true"], "grid=true must be like grid=25"),
        (["run", "split=tets"], "split=tets is not one of train, val, test"),
        (["run", "range=0"], "range=0.0 must be above 0 and finite"),
        (["run", "range=.inf"], "range=inf must be above 0 and finite"),
        (["run", "devices=0"], "devices=0 must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_a_message(words, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse(words)


def test_more_gpus_than_there_are_is_a_message(runs, landscape):
    result = landscape(runs[0], "accelerator=cuda")
    assert result.returncode == 1
    assert "devices=1, but there are 0 GPUs: set accelerator=cpu" in result.stderr


def test_the_help_has_every_key_and_imports_no_torch():
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from src.landscape import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "  grid=25  # points along each side" in done.stdout
    assert "running statistics of the trained net" in done.stdout


@pytest.mark.slow  # two processes that import torch
def test_ctrl_c_ends_two_processes_at_once_and_keeps_the_points(runs, tmp_path):
    out = tmp_path / "landscape"
    arguments = [*runs, "grid=99", "images=20", "accelerator=cpu", "devices=2"]
    command = [sys.executable, "-m", MODULE, *arguments, f"output_dir={out}"]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    points = out / "digits-plain8-s0.csv"
    while not points.exists() or points.stat().st_size < 500:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "interrupted; the same command resumes" in process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 130
    assert len(points.read_text().splitlines()) > 5
