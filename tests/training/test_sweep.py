"""How the runs of a sweep share the devices, and how a sweep ends."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from command_line import call, call_here
from conftest import ROOT, TINY
from interruptible_run import FORK_SERVER, TIMEOUT
from run_comparison import assert_same_run

from src import train
from src.runs.run_dir import RunDir
from src.training.sweep import Sweep, SweepError
from src.training.sweep_job import Job, run_job

SHORT = ["n=1", "recipe.eval_every=10", "recipe.checkpoint_every=5", "recipe.log_every=5"]
SHORT += ["trainer.precision=32-true", "checkpoint_seconds=0"]


def make_job(tmp_path: Path, name: str, n: int = 1, devices: object = 1) -> Job:
    config = {
        "choices": {"data": "digits", "model": "resnet", "recipe": "digits"},
        "data": {"val_images": 0},
        "recipe": {"iterations": 10, "batch_size": 2},
        "model": {"n": n},
        "seed": 0,
        "trainer": {"devices": devices},
    }
    return Job(RunDir(tmp_path / name, config, {"n": 1}), [])


def make_sweep(jobs: list[Job], slots: list[str]) -> Sweep:
    return Sweep(jobs, slots, 1, print)


def leased(sweep: Sweep) -> dict[str, list[str]]:
    """Return the devices that a sweep leases now, by the names of the jobs."""
    return {job.run_dir.path.name: devices for job, devices in sweep.lease_devices()}


def test_with_several_slots_the_longest_job_is_first(tmp_path):
    jobs = [make_job(tmp_path, f"n{n}", n) for n in (3, 200, 9, 18)]
    assert leased(make_sweep(jobs, ["0", "1"])) == {"n200": ["0"], "n18": ["1"]}
    two_per_device = make_sweep(jobs, ["0", "1"] * 2)
    assert leased(two_per_device) == {"n200": ["0"], "n18": ["1"], "n9": ["0"], "n3": ["1"]}


def test_with_one_slot_the_shortest_job_is_first(tmp_path):
    sweep = make_sweep([make_job(tmp_path, f"n{n}", n) for n in (3, 200, 9, 18)], ["cpu"])
    order = []
    while sweep.waiting:
        order += leased(sweep)
        assert leased(sweep) == {}  # until the slot is free again
        sweep.free.append("cpu")
    assert order == ["n3", "n9", "n18", "n200"]


def test_a_job_on_several_devices_waits_until_enough_different_ones_are_free(tmp_path):
    jobs = [
        make_job(tmp_path, "two", 9, 2),
        make_job(tmp_path, "one", 3),
        make_job(tmp_path, "all", 1, "auto"),
    ]
    assert leased(make_sweep(jobs, ["0", "1"] * 2)) == {"two": ["0", "1"], "one": ["0"]}
    sweep = make_sweep(jobs, ["0", "1"])
    sweep.free = ["1"]
    assert leased(sweep) == {}  # the short jobs do not overtake the long one
    sweep.free = ["1", "0"]
    assert leased(sweep) == {"two": ["1", "0"]}


def test_a_job_with_several_processes_runs_on_one_cpu(tmp_path):
    assert leased(make_sweep([make_job(tmp_path, "two", 1, 2)], ["cpu"])) == {"two": ["cpu"]}


def test_two_commands_for_one_run_are_one_job(tmp_path):
    jobs = [make_job(tmp_path, "same"), make_job(tmp_path, "same")]
    assert len(make_sweep(jobs, ["cpu"]).waiting) == 1


def test_two_runs_whose_directories_have_the_same_name_are_an_error(find):
    """A name has the last part of each key; of two keys it may be the same."""
    scenes = ["task=localization", "data=scenes", "data.max_objects=1"]
    runs = [find(*scenes, crop) for crop in ("data.crop=32", "recipe.localizer.crop=32")]
    assert runs[0].path == runs[1].path
    with pytest.raises(ValueError, match="have the same directory .*crop was .*: run them apart"):
        make_sweep([Job(run, []) for run in runs], ["cpu"])


@pytest.mark.fault_injection("processes", "a sweep within torchrun or srun")
@pytest.mark.parametrize(
    "environment",
    [{"TORCHELASTIC_RUN_ID": "x"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}],
)
def test_a_sweep_started_by_torchrun_or_srun_is_an_error(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="start it without torchrun or srun"):
        make_sweep([], ["cpu"]).run()


def report_process(run_dir: RunDir) -> None:
    """Write down what a run sees of its process."""
    seen = {"argv": sys.argv[1:], "threads": torch.get_num_threads(), **os.environ}
    (run_dir.path / "seen.json").write_text(json.dumps(seen))


def run_job_launched_as_rank_1(*arguments: object) -> None:
    launched = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "PL_GLOBAL_SEED": "7", "SLURM_NTASKS": "2"}
    os.environ.update(launched)
    run_job(*arguments)


def test_a_job_sees_its_devices_threads_and_command_and_no_launcher(tmp_path):
    job = make_job(tmp_path, "job")
    job.run_dir.path.mkdir()
    environment = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "3,1"}
    arguments = (report_process, job.run_dir, ["n=1", "seed=2"], environment)
    process = FORK_SERVER.Process(target=run_job_launched_as_rank_1, args=arguments)
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0
    seen = json.loads((job.run_dir.path / "seen.json").read_text())
    assert seen["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert seen["threads"] == 3
    assert seen["OMP_NUM_THREADS"] == "3"
    # Lightning starts further ranks with these arguments.
    assert seen["argv"] == ["n=1", "seed=2", "hydra.mode=RUN"]
    assert not {"LOCAL_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED", "SLURM_NTASKS"} & seen.keys()


def test_a_sweep_tells_each_run_its_device_its_threads_and_further_variables(find):
    jobs = [Job(find(*TINY, f"seed={seed}"), []) for seed in (0, 1)]
    with pytest.raises(SweepError):  # reporting does not finish a run
        Sweep(jobs, ["5", "7"], 2, report_process, {"MPS": "here"}).run()
    seen = [json.loads((job.run_dir.path / "seen.json").read_text()) for job in jobs]
    assert sorted(run["CUDA_VISIBLE_DEVICES"] for run in seen) == ["5", "7"]
    assert {(run["OMP_NUM_THREADS"], run["MPS"]) for run in seen} == {("2", "here")}


@pytest.mark.parametrize("slot", ["cpu", pytest.param("0", marks=pytest.mark.gpu)])
def test_runs_that_share_a_device_are_bitwise_identical_to_lone_ones(find, tmp_path, slot):
    overrides = [*TINY, "trainer.precision=32-true", "trainer.deterministic=true"]
    overrides += [f"trainer.accelerator={'cpu' if slot == 'cpu' else 'gpu'}"]
    lone, packed = (
        [find(*overrides, f"seed={seed}", f"output_dir={tmp_path}/{name}") for seed in (0, 1)]
        for name in ("lone", "packed")
    )
    for run_dir in lone:
        Sweep([Job(run_dir, [])], [slot], 1, train.run_in_sweep).run()
    sweep = Sweep([Job(run_dir, []) for run_dir in packed], [slot, slot], 1, train.run_in_sweep)
    sweep.run()
    first, second = sweep.finished
    assert first.started < second.ended
    assert second.started < first.ended
    for own, expected in zip(packed, lone, strict=True):
        assert_same_run(own, expected)


@pytest.mark.slow
def test_a_failed_run_is_reported_and_the_same_command_tries_it_alone_again(capsys, tmp_path):
    overrides = ["-m", *SHORT, "recipe.iterations=10", "recipe.schedule.lr=0.1,1e30,0.2"]
    overrides += [f"output_dir={tmp_path}"]
    done = call_here(capsys, *overrides)
    assert done.returncode == 1
    assert "1 of 3 runs failed; the same command tries them again" in done.stderr
    run_dirs = sorted((tmp_path / "digits").iterdir())
    (failed,) = (run_dir for run_dir in run_dirs if "lr1e+30" in run_dir.name)
    assert len(run_dirs) == 3
    for run_dir in run_dirs:
        assert (run_dir / "summary.json").exists() == (run_dir != failed)
    reason = "the training loss is not finite"
    assert f"FAILED    {failed}: {reason} at iteration 5" in done.stderr
    assert (failed / "error.txt").read_text().startswith(reason)
    assert "FloatingPointError" in (failed / "log.txt").read_text()

    done = call_here(capsys, *overrides)
    assert done.returncode == 1
    started = [line for line in done.stdout.splitlines() if line.startswith("started")]
    assert started == [f"started   {failed} on cpu"]
    # Once in the first line, and in the table for each of the two.
    assert done.stdout.count("finished before") == 3


def processes_with(mark: str) -> list[int]:
    """Return all processes with a text in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_until(condition, process: subprocess.Popen | None = None) -> None:
    """Wait for a condition, while a process is alive."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


class StartedSweep:
    """A sweep in a process of its own, with all processes that it starts."""

    def __init__(self, command: list[str], errors: Path) -> None:
        self.mark, self.errors = str(uuid.uuid4()), errors
        with open(errors, "w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"SWEEP": self.mark},
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                # Tests in the background ignore Ctrl-C, and so would what they start.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def end(self, number: int) -> int:
        """Send a signal, wait for the end of all processes, and return the sweep's exit status."""
        with suppress(ProcessLookupError):  # it may have finished by itself
            if number == signal.SIGINT:
                os.killpg(self.process.pid, number)  # as a terminal does on Ctrl-C
            else:
                self.process.send_signal(number)
        status = self.process.wait(TIMEOUT)
        wait_until(lambda: not processes_with(self.mark))
        return status


WAITING_SWEEP = """
import pickle, sys
sys.path += {path}
from waiting_run import wait_with_a_child
from src.cli import run_entry_point
from src.training.sweep import Job, Sweep
run_dir = pickle.loads({run_dir})
run_entry_point(Sweep([Job(run_dir, [])], ["cpu"], 1, wait_with_a_child).run)
"""


@pytest.mark.slow
def test_a_signal_to_a_sweep_leaves_no_process_and_no_warning(find, tmp_path):
    """Ctrl-C, SIGTERM and SIGKILL, to three sweeps at once."""
    statuses = {signal.SIGINT: 130, signal.SIGTERM: -15, signal.SIGKILL: -9}
    sweeps, run_dirs = {}, {}
    for number in statuses:
        run_dirs[number] = find(*TINY, f"output_dir={tmp_path}/{number.name}")
        script = WAITING_SWEEP.format(path=sys.path, run_dir=pickle.dumps(run_dirs[number]))
        command = [sys.executable, "-c", script]
        sweeps[number] = StartedSweep(command, tmp_path / f"{number.name}.txt")
    for number, sweep in sweeps.items():
        waiting = run_dirs[number].path / "waiting"
        wait_until(waiting.exists, sweep.process)
        # The sweep, its fork server, a resource tracker, the run and its child.
        assert len(processes_with(sweep.mark)) >= 4
        assert sweep.end(number) == statuses[number], sweep.errors.read_text()
        message = "\ninterrupted; the same command resumes\n" if number == signal.SIGINT else ""
        # Neither a traceback nor a warning of a leaked semaphore, which a progress bar has.
        assert sweep.errors.read_text() == message


def metrics(output_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output_dir)): path.read_bytes()
        for path in sorted(output_dir.rglob("*.csv"))
    }


@pytest.mark.slow
@pytest.mark.fault_injection("kill", "SIGKILL or Ctrl-C to a sweep with its runs")
def test_an_experiment_that_is_killed_twice_ends_bitwise_identical_to_an_undisturbed_one(
    capsys, tmp_path, record_property
):
    record_property("tried", 2)
    overrides = ["experiment=digits_depth", *SHORT[1:], "n=1,2", "recipe.iterations=60"]
    done = call_here(capsys, *overrides, f"output_dir={tmp_path}/undisturbed")
    assert done.returncode == 0, done.stderr
    undisturbed = metrics(tmp_path / "undisturbed")
    assert len(undisturbed) == 8  # metrics and layers of four runs

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "src.train", *overrides, f"output_dir={killed}"]

    def rows() -> int:
        files = metrics(killed).items()
        return sum(content.count(b"\n") for name, content in files if "metrics" in name)

    kills = {signal.SIGKILL: 1, signal.SIGINT: 10}
    for number, rows_before in kills.items():
        sweep = StartedSweep(command, tmp_path / "errors")
        wait_until(lambda at=rows_before: rows() >= at, sweep.process)
        sweep.end(number)
        assert "leaked" not in sweep.errors.read_text()

    done = call_here(capsys, *overrides, f"output_dir={killed}")
    assert done.returncode == 0, done.stderr
    assert metrics(killed) == undisturbed


@pytest.mark.slow
@pytest.mark.fault_injection(
    "processes", "runs on two ranks in a sweep, one of which fails in its second process"
)
def test_a_run_that_fails_on_rank_1_does_not_affect_the_next_run(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('LOCAL_RANK') == '1' and 'seed=0' in sys.orig_argv:\n"
        "    sys.exit('rank 1 dies')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    ranks = ["trainer.devices=2", "trainer.accelerator=cpu"]
    done = call("-m", "seed=0,1", *TINY, *ranks, f"output_dir={tmp_path}/runs")
    assert done.returncode == 1, done.stderr
    failed, finished = sorted((tmp_path / "runs" / "digits").iterdir())
    assert (failed.name[-2:], finished.name[-2:]) == ("s0", "s1")
    assert (failed / "error.txt").exists()
    assert not (finished / "error.txt").exists()
    assert json.loads((finished / "summary.json").read_text())["devices"] == 2
    assert done.stderr.count("FAILED") == 1
