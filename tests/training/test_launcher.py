"""Sweeps as a user starts them, in processes of their own, and how the jobs are given to devices."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from conftest import ROOT

from src.runs.run_dir import RunDir
from src.training.sweep import Job, Sweep, slots

SHORT = "recipe.eval_every=10 recipe.checkpoint_every=5 recipe.log_every=5 trainer.precision=32-true".split()


def command(*overrides):
    return [sys.executable, "-m", "src.train", *overrides, *SHORT]


def sweep(*overrides, **environment):
    done = subprocess.run(
        command(*overrides),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


def processes_with(mark: str) -> list[int]:
    """Those that were started, by whomever, with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def metrics(runs: Path) -> dict[str, bytes]:
    return {str(path.relative_to(runs)): path.read_bytes() for path in sorted(runs.rglob("*.csv"))}


def test_one_failing_run_is_named_and_the_others_finish_and_a_second_call_tries_it_alone(tmp_path):
    # A launcher's leftovers must not make a run believe that it is one of several processes.
    overrides = (
        "-m",
        "n=1",
        "recipe.iterations=20",
        "recipe.schedule.lr=0.1,1e30,0.2",
        f"output_dir={tmp_path}",
    )
    code, out, err = sweep(*overrides, LOCAL_RANK="0", WORLD_SIZE="2", PL_GLOBAL_SEED="7")
    assert code == 1
    assert "1 of 3 runs failed; the same command tries them again" in err
    folders = sorted((tmp_path / "digits").iterdir())
    (failed,) = [folder for folder in folders if "lr1e+30" in folder.name]
    assert [(folder / "summary.json").exists() for folder in folders] == [
        folder != failed for folder in folders
    ]
    assert len(folders) == 3
    assert f"FAILED    {failed}: the training loss is not finite at iteration 5" in err
    assert (failed / "error.txt").read_text().startswith("the training loss is not finite")
    assert "FloatingPointError" in (failed / "log.txt").read_text()

    code, out, err = sweep(*overrides)
    assert code == 1
    assert [line.split(" on ")[0] for line in out.splitlines() if line.startswith("started")] == [
        f"started   {failed}"
    ]
    assert out.count("finished before") == 3  # in the head, and in the table for each of the two


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_a_sweep_leaves_no_process(tmp_path, number):
    mark = f"SWEEP={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    started = subprocess.Popen(
        command("-m", "seed=0,1", "n=1", "recipe.iterations=100000", f"output_dir={tmp_path}"),
        cwd=ROOT,
        env=os.environ | {name: value},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Where the tests run in the background, ctrl-C is ignored by them and by what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("metrics.csv")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert len(processes_with(mark)) >= 3  # the sweep, its fork server and a run
    started.send_signal(number)
    started.wait(10)
    deadline = time.monotonic() + 10
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(mark) == []


@pytest.mark.fault_injection("kill", "SIGKILL to a sweep with its runs")
def test_an_experiment_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, record_property):
    record_property("tried", 3)
    overrides = ("experiment=digits_depth", "n=1,2", "recipe.iterations=60")
    code, _, err = sweep(*overrides, f"output_dir={tmp_path}/whole")
    assert code == 0, err
    whole = metrics(tmp_path / "whole")
    assert len(whole) == 8  # metrics and layers of four runs
    for rows in (1, 5, 15):  # rows of metrics at which the sweep is killed
        process = subprocess.Popen(
            command(*overrides, f"output_dir={tmp_path}/killed"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while (
            sum(
                text.count(b"\n")
                for name, text in metrics(tmp_path / "killed").items()
                if "metrics" in name
            )
            < rows
        ):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    code, _, err = sweep(*overrides, f"output_dir={tmp_path}/killed")
    assert code == 0, err
    assert metrics(tmp_path / "killed") == whole


@pytest.mark.fault_injection(
    "processes", "runs on two devices in a sweep, and one of them fails in its second process"
)
def test_a_run_on_two_devices_that_fails_in_its_second_process_takes_nothing_with_it(tmp_path):
    """Over gloo; the second process of one of three runs dies as it starts."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('LOCAL_RANK') == '1' and 'seed=1' in sys.orig_argv:\n"
        "    sys.exit('the second process dies')\n"
    )
    code, _, err = sweep(
        "-m", "seed=0,1,2", "n=1", "recipe.iterations=10", "trainer.devices=2", "trainer.accelerator=cpu",
        f"output_dir={tmp_path}/runs", PYTHONPATH=str(site),
    )  # fmt: skip
    assert code == 1, err
    folders = {folder.name[-2:]: folder for folder in (tmp_path / "runs" / "digits").iterdir()}
    assert sorted(folders) == ["s0", "s1", "s2"]
    assert [name for name, folder in folders.items() if (folder / "error.txt").exists()] == ["s1"]
    for name in ("s0", "s2"):
        assert '"devices": 2' in (folders[name] / "summary.json").read_text()
    assert err.count("FAILED") == 1


def job(tmp_path: Path, name: str, n: int, devices: object = 1) -> Job:
    config = {
        "recipe": {"iterations": 10, "batch_size": 2},
        "model": {"n": n},
        "trainer": {"devices": devices},
    }
    return Job(RunDir(tmp_path / name, config), [])


def started(sweep: Sweep) -> dict[str, list[str]]:
    """The jobs that a sweep would start now, and on what."""
    given = {}
    sweep._start = lambda job, devices: given.update({job.folder.path.name: devices})
    sweep._start_what_fits()
    return given


def test_the_longest_job_goes_first_and_each_device_has_as_many_as_it_takes(tmp_path):
    jobs = [job(tmp_path, f"n{n}", n) for n in (3, 200, 9, 18)]
    assert started(Sweep(jobs, ["0", "1"], 1)) == {"n200": ["0"], "n18": ["1"]}
    assert started(Sweep(jobs, ["0", "1"] * 2, 1)) == {
        "n200": ["0"],
        "n18": ["1"],
        "n9": ["0"],
        "n3": ["1"],
    }


def test_a_job_of_several_devices_has_different_ones_and_waits_for_them(tmp_path):
    jobs = [job(tmp_path, "two", 9, 2), job(tmp_path, "one", 3), job(tmp_path, "all", 1, "auto")]
    assert started(Sweep(jobs, ["0", "1", "0", "1"], 1)) == {"two": ["0", "1"], "one": ["0"]}
    assert started(Sweep(jobs, ["cpu"], 1)) == {"two": ["cpu"]}  # its two processes are on one CPU
    half_free = Sweep(jobs, ["0", "1"], 1)
    half_free.free = ["1"]
    assert started(half_free) == {}  # rather than let the short ones keep the long one waiting


def test_two_commands_for_one_run_are_one_job(tmp_path):
    assert len(Sweep([job(tmp_path, "same", 3), job(tmp_path, "same", 3)], ["cpu"], 1).waiting) == 1


@pytest.mark.fault_injection("processes", "a sweep within torchrun or srun")
@pytest.mark.parametrize(
    "launched", [{"TORCHELASTIC_RUN_ID": "x"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}]
)
def test_a_sweep_in_each_of_several_processes_is_refused(monkeypatch, launched):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="starts the processes of its runs itself: leave torchrun or srun away"
    ):
        Sweep([], ["cpu"], 1).run()


def test_slots_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert slots("auto", 1) == (["0", "1", "2", "3"], 4)
    assert slots("auto", 3) == (["0", "1", "2", "3"] * 3, 1)
    assert slots("cpu", 2) == (["cpu", "cpu"], 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert slots("gpu", 1) == (["2", "3"], 8)
    with pytest.raises(ValueError, match="sweep.jobs_per_device=0 must be at least 1"):
        slots("auto", 0)
