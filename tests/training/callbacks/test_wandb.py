"""Runs in W&B: what is sent, and that no failure of W&B reaches the training."""

import os
import pty
import re
import socket
import subprocess
import sys
import time

import pytest
import wandb
import yaml
from conftest import ROOT
from fake_wandb_server import KEY, OfflineRun

from src.config import CONF
from src.training.callbacks import wandb as wandb_callback
from src.training.callbacks.metrics import metric_columns
from src.training.callbacks.wandb import WandbRun, choose_mode, flat_config, run_id

ROWS = [
    {"iteration": 10, "lr": 0.1, "train/loss": 1.5},
    {
        **{"iteration": 20, "lr": 0.1, "train/loss": 1.25, "train/error": 40.0},
        **{"test/error": 50.0, "test/error_top5": 5.0},
    },
    {"iteration": 30, "lr": 0.01, "train/loss": 1.125},
]
SUMMARY = {
    **{"depth": 8, "train_error": 40.0, "val_error": None, "test_error": 50.0},
    "versions": {"torch": "2.13"},
}
COLUMNS = metric_columns(["loss", "error", "error_top5"])

# A run in a process of its own, which is killed after it has sent its rows. It is not forked: the
# process of W&B that outlives it would keep the pipes of the fork server open.
KILLED = f"""
import os, sys
from pathlib import Path
from src.runs.run_dir import RunDir
from src.training.callbacks.wandb import WandbRun
run_dir = RunDir.open(Path(sys.argv[1]))
with WandbRun(run_dir, depth=8, project="deep") as run:
    run.start()
    for row in {ROWS!r}:
        run_dir.append_metrics({COLUMNS!r}, row)
        run.send(row)
    print("sent", flush=True)
    input()
    os.kill(os.getpid(), 9)
"""


pytestmark = pytest.mark.usefixtures("wandb_user")


@pytest.fixture
def make(find):
    """Create the run directory of a command line, with its config.yaml."""

    def make(*overrides):
        run_dir = find("n=1", "trainer.precision=32-true", *overrides)
        run_dir.create()
        return run_dir

    return make


def wandb_run(run_dir):
    return WandbRun(run_dir, depth=8, project="deep")


def send_run(run_dir, rows=ROWS, summary=SUMMARY):
    """Write rows and results as a run does, and send them."""
    with wandb_run(run_dir) as run:
        run.start()
        for row in rows:
            run_dir.append_metrics(COLUMNS, row)
            run.send(row)
        if summary:
            run_dir.write_summary(summary)


def start_and_kill(run_dir, is_received=lambda: True):
    """Kill a run when its rows are sent, and received by the server if there is one."""
    command = [sys.executable, "-c", KILLED, str(run_dir.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        while process.stdout.readline() not in ("sent\n", ""):
            pass
        while process.poll() is None and not is_received():
            time.sleep(0.02)
        # Not communicate: it waits until the surviving W&B process closes the pipe as well.
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait()
    assert process.returncode == -9


def send_and_fail(run_dir):
    """Send a row, then fail as a run does."""
    with wandb_run(run_dir) as run:
        run.start()
        run.send(ROWS[0])
        raise ZeroDivisionError


def files_below(path):
    return [file for file in path.rglob("*") if file.is_file()]


def test_a_training_run_sends_each_of_its_rows_and_its_results(tiny):
    run_dir = tiny("logger=wandb", "logger.project=deep")
    run = OfflineRun(run_dir.path)
    assert run.rows == run_dir.rows()
    assert (run.run.project, run.config["depth"], run.exit_codes) == ("deep", 8, [0])
    assert run.summary["test_error"] == run_dir.summary["test_error"]


def test_a_run_that_was_stopped_and_resumed_is_one_series(tiny, tiny_until):
    tiny_until(5, "logger=wandb")
    run_dir = tiny("logger=wandb")
    run = OfflineRun(run_dir.path)
    assert run.rows == run_dir.rows()
    assert run.exit_codes == [0]


def test_two_runs_of_one_process_are_separate_and_each_says_how_it_ended(make):
    first, second = make("seed=1"), make("seed=2")
    with pytest.raises(ZeroDivisionError):
        send_and_fail(first)
    send_run(second)
    failed, finished = OfflineRun(first.path), OfflineRun(second.path)
    assert failed.run.run_id != finished.run.run_id
    assert (failed.exit_codes, finished.exit_codes) == ([1], [0])
    assert [row["iteration"] for row in failed.rows] == [10]
    assert finished.rows == ROWS
    assert (failed.config["seed"], finished.config["seed"]) == (1, 2)


def test_a_run_is_described_by_its_config_name_group_and_tags(make):
    run_dir = make("model=resnet", "seed=3", "recipe.schedule.lr=0.05")
    send_run(run_dir)
    run = OfflineRun(run_dir.path)
    names = ("family", "depth", "n", "shortcut", "model", "data", "seed")
    expected = ["residual", 8, 1, "A", "resnet", "digits", 3]
    assert [run.config[name] for name in names] == expected
    assert run.config["recipe_schedule_lr"] == 0.05
    assert not [key for key in run.config if not re.fullmatch(r"\w+", key)]
    assert (run.run.project, run.run.run_group, run.run.job_type) == ("deep", "digits", "train")
    assert run.run.display_name == run_dir.path.name
    assert list(run.run.tags) == ["residual", "resnet", "digits"]
    assert (run.summary["test_error"], run.summary["train_error"]) == (50, 40)
    assert "val_error" not in run.summary


def test_an_experiment_is_a_group(make):
    run_dir = make()
    run_dir.config["choices"]["experiment"] = "digits_depth"
    send_run(run_dir)
    assert OfflineRun(run_dir.path).run.run_group == "digits_depth"


def test_every_metric_has_the_iteration_as_its_x_axis(make):
    run_dir = make()
    send_run(run_dir)
    run = OfflineRun(run_dir.path)
    metrics = run.of_kind("metric")
    x_axes = {metric.glob_name or metric.name: metric.step_metric for metric in metrics}
    assert x_axes["*"] == "iteration"
    assert {*x_axes.values()} <= {"iteration", ""}
    assert run.rows == run_dir.rows() == ROWS


def test_no_key_code_or_measurement_of_the_machine_is_written(make, capsys):
    run_dir = make()
    send_run(run_dir, ROWS[:1], summary=None)
    run = OfflineRun(run_dir.path)
    kinds = {record.WhichOneof("record_type") for record in run.records}
    assert not kinds & {"output_raw", "stats"}
    assert not run.run.HasField("git")
    files = files_below(run_dir.path)
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [path for path in files if path.suffix in (".py", ".patch")]
    out, err = capsys.readouterr()
    assert re.search(rf"wandb sync {run_dir.path}/wandb/offline-run-\S+\n$", out)
    assert KEY not in out
    assert (out.count("\n"), err) == (1, "")


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_offline_is_one_series(make):
    run_dir = make()
    start_and_kill(run_dir)
    run_dir.truncate(20)  # the last checkpoint
    send_run(run_dir, ROWS[2:])
    run = OfflineRun(run_dir.path)  # no other file is left, which could be sent after it
    assert run.rows == ROWS
    assert [row["_step"] for row in run.history] == [0, 1, 2]
    assert run.exit_codes == [0]
    logs = [log.read_text(errors="replace") for log in run_dir.path.rglob("*.log")]
    assert logs
    assert not [log for log in logs if "less than" in log]


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_online_is_one_series(make, server):
    run_dir = make()
    name = run_id(run_dir)
    start_and_kill(run_dir, lambda: len(server.runs.get(name, {}).get("history", [])) == 3)
    run_dir.truncate(20)
    send_run(run_dir, [ROWS[2], {"iteration": 40, "lr": 0.01}])
    ((run_name, run),) = server.runs.items()
    assert run_name == name
    history = [(row["iteration"], row["_step"]) for row in run["history"]]
    assert history == [(10, 0), (20, 1), (30, 2), (40, 3)]
    assert (run["exit_code"], run["summary"]["test_error"]) == (0, 50)
    assert run["streamed"] == {"wandb-history.jsonl", "wandb-summary.json"}  # no output.log
    assert not [file for file in files_below(run_dir.path) if KEY.encode() in file.read_bytes()]


def test_a_run_from_scratch_adds_nothing_to_what_wandb_has_of_it(make, server):
    run_dir = make()
    send_run(run_dir, ROWS[:2], summary=None)
    run_dir.metrics.unlink()
    send_run(run_dir)
    ((name, run),) = server.runs.items()
    assert name == run_id(run_dir)
    assert [row["iteration"] for row in run["history"]] == [10, 20, 30]


def test_offline_files_are_removed_when_the_run_is_sent(make, server):
    run_dir = make()
    (run_dir.path / "wandb" / "offline-run-20260101_000000-before").mkdir(parents=True)
    send_run(run_dir)
    directories = (run_dir.path / "wandb").glob("*run-*-*")
    assert [path.name.partition("-")[0] for path in directories] == ["run"]


def test_a_server_that_is_lost_does_not_stop_a_run(make, server, monkeypatch, capsys):
    monkeypatch.setattr(wandb_callback, "FINISH_TIMEOUT", 1)
    run_dir = make()
    with wandb_run(run_dir) as run:
        run.start()
        server.__exit__()
        for row in ROWS:
            run_dir.append_metrics(COLUMNS, row)
            run.send(row)
    shown, failed = capsys.readouterr().out.splitlines()
    assert shown.startswith(f"{run_dir.path} is shown at {server.url}/us/")
    assert failed.startswith("W&B failed (Timed out")
    assert str(run_dir.metrics) in failed


@pytest.mark.parametrize("methods", ["define_metric", "log", "finish", "log finish"])
def test_an_error_of_wandb_is_reported_once_and_the_run_continues(
    make, monkeypatch, capsys, methods
):
    def fail(*_, **__):
        raise RuntimeError("the disk is full\nand more")

    run_dir = make()
    for method in methods.split():
        monkeypatch.setattr(wandb.Run, method, fail)
    send_run(run_dir)
    assert run_dir.rows() == ROWS
    assert run_dir.summary
    assert capsys.readouterr().out.count("W&B failed (the disk is full); ") == 1


def test_a_run_that_could_not_be_closed_does_not_receive_the_rows_of_the_next(make, monkeypatch):
    first, second = make("seed=1"), make("seed=2")
    with monkeypatch.context() as broken:
        broken.setattr(wandb.Run, "finish", lambda *_, **__: 1 / 0)
        send_run(first, ROWS[:1])
    send_run(second)
    assert OfflineRun(first.path).rows == ROWS[:1]
    assert OfflineRun(second.path).rows == ROWS


def test_an_error_of_the_run_is_raised_whatever_wandb_does(make, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    with pytest.raises(FloatingPointError), wandb_run(make()):
        raise FloatingPointError


def test_a_key_that_the_server_rejects_makes_the_run_offline(make, server, capfd):
    server.rejects_keys = True
    run_dir = make()
    send_run(run_dir)
    assert OfflineRun(run_dir.path).rows == ROWS
    out, err = capfd.readouterr()
    assert re.fullmatch(r"W&B is offline \(.*permission denied.*\); .*\n", out)
    assert not err


def test_without_a_key_nobody_is_asked_for_one(server, monkeypatch):
    """In a process with a terminal, at which wandb would ask; wandb is imported when needed."""
    monkeypatch.delenv("WANDB_API_KEY")
    ours, theirs = pty.openpty()
    code = (
        "import sys, src.training.trainer; from src.training.callbacks.wandb import choose_mode;"
        "print('wandb' in sys.modules, *choose_mode())"
    )
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100, **terminal)
    output = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert result.returncode == 0
    assert output.strip() == "False offline no API key: run wandb login"


def test_a_key_of_the_wrong_form_is_reported(server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    mode, reason = choose_mode()
    assert mode == "offline"
    assert "WANDB_API_KEY" in reason


@pytest.mark.parametrize("listens", [False, True])
def test_a_server_that_does_not_answer_makes_the_run_offline(monkeypatch, listens):
    monkeypatch.setattr(wandb_callback, "ANSWER_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_MODE", "online")
        assert choose_mode() == ("offline", f"{os.environ['WANDB_BASE_URL']} does not answer")


def test_a_user_can_turn_wandb_off(make, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run_dir = make()
    send_run(run_dir)
    assert not (run_dir.path / "wandb").exists()
    assert capfd.readouterr() == ("", "")


def test_an_id_depends_on_what_a_run_is_and_not_on_where_it_is_executed(find):
    elsewhere = ("compile=none", "trainer.devices=2", "activation_checkpointing=true")
    same = find("n=1"), find("n=1", *elsewhere)
    others = [
        find("n=1", other)
        for other in ("seed=1", "recipe.batch_size=64", "data=cifar10", "model=plain")
    ]
    assert len({run_id(run_dir) for run_dir in same}) == 1
    assert len({run_id(run_dir) for run_dir in (*same, *others)}) == 5
    assert re.fullmatch("[0-9a-f]{16}", run_id(same[0]))


def test_a_config_for_wandb_has_one_level(find):
    flat = flat_config(find("model=resnet20", "data=cifar10").config, 20)
    names = ("n", "depth", "data", "model")
    assert [flat[name] for name in names] == [3, 20, "cifar10", "resnet20"]
    assert not [key for key, value in flat.items() if isinstance(value, dict) or "." in key]
    assert flat_config(find("model=plain20").config, 20)["shortcut"] is None


def test_each_logger_is_a_name_and_what_its_runs_need():
    files = (CONF / "logger").glob("*.yaml")
    loggers = {path.stem: yaml.safe_load(path.read_text()) for path in files}
    assert {name: logger.pop("name") for name, logger in loggers.items()} == {
        "csv": "csv",
        "wandb": "wandb",
    }
    assert loggers == {"csv": {}, "wandb": {"project": "deep-residual-learning", "entity": None}}
