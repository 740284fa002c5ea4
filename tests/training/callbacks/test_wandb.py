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
from fake_wandb_server import KEY, Offline

from src.config import CONF
from src.training.callbacks import wandb as module
from src.training.callbacks.wandb import dashboard, flat_config, mode, run_id

ROWS = [
    {"iteration": 10, "lr": 0.1, "train/loss": 1.5},
    {
        "iteration": 20,
        "lr": 0.1,
        "train/loss": 1.25,
        "train/error": 40.0,
        "test/error": 50.0,
        "test/error_top5": 5.0,
    },
    {"iteration": 30, "lr": 0.01, "train/loss": 1.125},
]
SUMMARY = {
    "depth": 8,
    "train_error": 40.0,
    "val_error": None,
    "test_error": 50.0,
    "versions": {"torch": "2.13"},
}

# A run in a process of its own, which is killed when its rows are written.
KILLED = f"""
import os, sys, yaml
from pathlib import Path
from src.training.callbacks.wandb import dashboard
from src.runs.run_dir import RunDir
folder = RunDir(Path(sys.argv[1]), yaml.safe_load(Path(sys.argv[1], "config.yaml").read_text()))
with dashboard(folder, "residual", 8, "deep", None) as board:
    board.start()
    for row in {ROWS!r}:
        if row["iteration"] > folder.reached:
            folder.log(row)
            board.log(row)
    input()
    os.kill(os.getpid(), 9)
"""


pytestmark = pytest.mark.usefixtures("wandb_user")


@pytest.fixture
def make(find):
    """The folder of a command line, with its config.yaml in it."""

    def make(*overrides):
        folder = find("n=1", *overrides)
        folder.path.mkdir(parents=True)
        (folder.path / "config.yaml").write_text(yaml.safe_dump(folder.config))
        return folder

    return make


def show(folder, rows=ROWS, summary=SUMMARY):
    """What a run does with its folder."""
    with dashboard(folder, "residual", 8, "deep", None) as board:
        board.start()
        for row in rows:
            folder.log(row)
            board.log(row)
        if summary:
            folder.finish(summary)


def start_and_kill(folder, sent=lambda: True):
    command = [sys.executable, "-c", KILLED, str(folder.path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 30
        while not (folder.reached == 30 and sent()) and time.monotonic() < until:
            time.sleep(0.02)
        in_time = time.monotonic() < until
        process.communicate("\n")
    assert in_time and process.returncode == -9


def test_two_jobs_of_one_process_are_two_runs_and_each_says_how_it_ended(make):
    first, second = make("seed=1"), make("seed=2")
    with pytest.raises(ZeroDivisionError), dashboard(first, "residual", 8, "deep", None) as board:
        board.start()
        board.log(ROWS[0])
        1 / 0  # noqa: B018
    show(second)
    failed, done = Offline(first.path), Offline(second.path)
    assert failed.run.run_id != done.run.run_id
    assert (failed.exit_codes, done.exit_codes) == ([1], [0])
    assert ([row["iteration"] for row in failed.rows], done.rows) == ([10], ROWS)
    assert (failed.config["seed"], done.config["seed"]) == (1, 2)


def test_a_run_tells_what_it_is(make):
    folder = make("model=resnet", "seed=3", "recipe.schedule.lr=0.05")
    show(folder)
    run = Offline(folder.path)
    names = ("family", "depth", "n", "shortcut", "model", "data", "seed")
    assert [run.config[name] for name in names] == ["residual", 8, 1, "A", "resnet", "digits", 3]
    assert run.config["recipe_schedule_lr"] == 0.05
    assert not [key for key in run.config if not re.fullmatch(r"\w+", key)]
    assert (run.run.project, run.run.run_group, run.run.job_type) == ("deep", "digits", "train")
    assert (run.run.display_name, list(run.run.tags)) == (
        folder.path.name,
        ["residual", "resnet", "digits"],
    )
    assert run.summary["test_error"] == 50 and run.summary["train_error"] == 40
    assert "val_error" not in run.summary


def test_an_experiment_is_a_group(make):
    folder = make()
    folder.config["choices"]["experiment"] = "digits_depth"
    show(folder)
    assert Offline(folder.path).run.run_group == "digits_depth"


def test_every_metric_is_drawn_over_the_iteration(make):
    folder = make()
    show(folder)
    run = Offline(folder.path)
    over = {metric.glob_name or metric.name: metric.step_metric for metric in run.of("metric")}
    assert over["*"] == "iteration"
    assert set(over.values()) <= {"iteration", ""}
    assert run.rows == folder.rows() == ROWS


def test_no_key_code_or_measurement_of_the_machine_is_written(make, capsys):
    folder = make()
    with dashboard(folder, "residual", 8, "deep", None) as board:
        board.start()
        board.log(ROWS[0])
    run = Offline(folder.path)
    assert not {record.WhichOneof("record_type") for record in run.all} & {"output_raw", "stats"}
    assert not run.run.HasField("git")
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [
        path
        for path in files
        if KEY.encode() in path.read_bytes() or path.suffix in (".py", ".patch")
    ]
    out, err = capsys.readouterr()
    assert re.search(rf"wandb sync {folder.path}/wandb/offline-run-\S+\n$", out) and KEY not in out
    assert out.count("\n") == 1 and not err


def test_a_run_killed_and_gone_on_with_offline_is_one_series(make):
    folder = make()
    start_and_kill(folder)
    folder.truncate_to(20)  # The last checkpoint.
    show(folder, ROWS[2:])
    run = Offline(folder.path)  # There is no other file that could be sent after it.
    assert run.rows == ROWS
    assert [row["_step"] for row in run.history] == [0, 1, 2]
    assert run.exit_codes == [0]
    logs = [log.read_text(errors="replace") for log in folder.path.rglob("*.log")]
    assert logs and not [log for log in logs if "less than" in log]


def test_a_run_killed_and_gone_on_with_online_is_one_series(make, server):
    folder = make()
    name = run_id(folder.config)
    start_and_kill(folder, lambda: len(server.runs.get(name, {}).get("history", [])) == 3)
    folder.truncate_to(20)
    show(folder, [ROWS[2], {"iteration": 40, "lr": 0.01}])
    history = server.runs[name]["history"]
    assert [(row["iteration"], row["_step"]) for row in history] == [
        (10, 0),
        (20, 1),
        (30, 2),
        (40, 3),
    ]
    assert list(server.runs) == [name]
    assert server.runs[name]["exit_code"] == 0
    assert server.runs[name]["summary"]["test_error"] == 50
    assert server.runs[name]["streamed"] == {
        "wandb-history.jsonl",
        "wandb-summary.json",
    }  # no output.log
    assert not [
        path
        for path in folder.path.rglob("*")
        if path.is_file() and KEY.encode() in path.read_bytes()
    ]


def test_a_run_made_anew_adds_nothing_to_what_w_and_b_has_of_it(make, server):
    folder = make()
    show(folder, ROWS[:2], summary=None)
    folder.metrics.unlink()
    show(folder)
    ((name, run),) = server.runs.items()
    assert name == run_id(folder.config)
    assert [row["iteration"] for row in run["history"]] == [10, 20, 30]


def test_what_was_written_offline_goes_when_the_whole_is_sent(make, server):
    folder = make()
    (folder.path / "wandb" / "offline-run-20260101_000000-before").mkdir(parents=True)
    show(folder)
    assert [path.name.partition("-")[0] for path in (folder.path / "wandb").glob("*run-*-*")] == [
        "run"
    ]


def test_a_server_that_is_lost_does_not_stop_a_run(make, server, monkeypatch, capsys):
    monkeypatch.setattr(module, "END", 1)
    folder = make()
    with dashboard(folder, "residual", 8, "deep", None) as board:
        board.start()
        server.__exit__()
        for row in ROWS:
            folder.log(row)
            board.log(row)
    shown, failed = capsys.readouterr().out.splitlines()
    assert shown.startswith(f"{folder.path} is shown at {server.url}/us/")
    assert failed.startswith("W&B failed (Timed out") and str(folder.metrics) in failed


@pytest.mark.parametrize("methods", ["define_metric", "log", "finish", "log finish"])
def test_what_wandb_raises_is_said_once_and_the_run_goes_on(make, monkeypatch, capsys, methods):
    def fail(*_, **__):
        raise RuntimeError("the disk is full\nand more")

    folder = make()
    for method in methods.split():
        monkeypatch.setattr(wandb.Run, method, fail)
    show(folder)
    assert folder.rows() == ROWS and folder.summary
    assert capsys.readouterr().out.count("W&B failed (the disk is full); ") == 1


def test_a_run_that_could_not_be_ended_does_not_take_in_the_next(make, monkeypatch):
    first, second = make("seed=1"), make("seed=2")
    with monkeypatch.context() as broken:
        broken.setattr(wandb.Run, "finish", lambda *_, **__: 1 / 0)
        show(first, ROWS[:1])
    show(second)
    assert (Offline(first.path).rows, Offline(second.path).rows) == (ROWS[:1], ROWS)


def test_an_error_of_the_run_is_raised_whatever_wandb_does(make, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    with pytest.raises(FloatingPointError), dashboard(make(), "plain", 8, "deep", None):
        raise FloatingPointError


def test_a_key_that_the_server_refuses_makes_the_run_offline(make, server, capfd):
    server.refuses = True
    folder = make()
    show(folder)
    assert Offline(folder.path).rows == ROWS
    out, err = capfd.readouterr()
    assert re.fullmatch(r"W&B is offline \(.*permission denied.*\); .*\n", out) and not err


def test_without_a_key_nobody_is_asked_for_one(server, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from src.training.callbacks.wandb import mode; print(mode())"]
    done = subprocess.run(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, timeout=20)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert said.strip() == "('offline', 'no key: wandb login takes one')"


def test_a_key_of_the_wrong_form_is_said(server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    how, why = mode()
    assert how == "offline" and "WANDB_API_KEY" in why


@pytest.mark.parametrize("listens", [False, True])
def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch, listens):
    monkeypatch.setattr(module, "ANSWER", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_MODE", "online")
        start = time.monotonic()
        assert mode() == ("offline", f"{os.environ['WANDB_BASE_URL']} does not answer")
        assert time.monotonic() - start < 2


def test_a_user_may_turn_it_off(make, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = make()
    show(folder)
    assert not (folder.path / "wandb").exists()
    assert capfd.readouterr() == ("", "")


def test_an_id_is_of_what_a_run_is_not_of_where_it_is(find):
    same = (
        find("n=1"),
        find("n=1", "compile=none", "trainer.devices=2", "activation_checkpointing=true"),
    )
    others = (
        find("n=1", "seed=1"),
        find("n=2"),
        find("n=1", "data=cifar10"),
        find("n=1", "model=plain"),
    )
    assert len({run_id(folder.config) for folder in same}) == 1
    assert len({run_id(folder.config) for folder in (*same, *others)}) == 5


def test_a_config_has_one_level(find):
    flat = flat_config(find("model=resnet20", "data=cifar10").config, "residual", 20)
    assert (flat["n"], flat["depth"], flat["data"], flat["model"]) == (3, 20, "cifar10", "resnet20")
    assert not [key for key, value in flat.items() if isinstance(value, dict) or "." in key]
    assert flat_config(find("model=plain20").config, "plain", 20)["shortcut"] is None


def test_each_logger_is_a_name_and_what_its_runs_need():
    loggers = {
        path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "logger").glob("*.yaml")
    }
    assert {name: logger.pop("name") for name, logger in loggers.items()} == {
        "csv": "csv",
        "wandb": "wandb",
    }
    assert loggers == {"csv": {}, "wandb": {"project": "deep-residual-learning", "entity": None}}


def test_wandb_is_not_imported_before_it_is_wanted():
    command = (
        "import sys, src.training.callbacks.wandb, src.runs.run_dir; print('wandb' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
