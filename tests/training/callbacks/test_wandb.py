"""Runs in W&B: what is sent, and that no failure of W&B reaches the training."""

import json
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import wandb
from command_line import call_here
from conftest import ROOT
from fake_wandb_server import KEY, OfflineRun

from src.tasks.classification import Classifier
from src.training import wandb_init
from src.training.callbacks import wandb as wandb_callback
from src.training.callbacks.metrics import metric_columns
from src.training.callbacks.preemption import Interrupted, requeue_if_interrupted
from src.training.callbacks.wandb import WandbRun

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
COLUMNS = metric_columns(Classifier)

# A run in a process of its own, which is killed after it has sent its rows. It is not forked: the
# process of W&B that outlives it would keep the pipes of the fork server open.
KILLED = f"""
import os, sys
from pathlib import Path
from src.runs.run_dir import RunDir
from src.training.callbacks.preemption import Interrupted, requeue_if_interrupted
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


def stored(run_dir):
    return json.loads((run_dir.path / "wandb.json").read_text())


def files_below(path):
    return [file for file in path.rglob("*") if file.is_file()]


def test_a_training_run_sends_each_of_its_rows_and_its_results(tiny):
    run_dir = tiny("logger=wandb", "logger.wandb.project=deep")
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
    curve = run_dir.path.name.removesuffix("-s3")
    assert [run.config[name] for name in names] == expected
    assert run.config["recipe_schedule_lr"] == 0.05
    assert not [key for key in run.config if not re.fullmatch(r"\w+", key)]
    assert curve == run.config["curve"] == "resnet8-lr0.05"
    assert (run.run.project, run.run.run_group, run.run.job_type) == ("deep", curve, "train")
    assert run.run.display_name == run_dir.path.name
    assert list(run.run.tags) == ["residual", "resnet", "digits"]
    assert (run.summary["test_error"], run.summary["train_error"]) == (50, 40)
    assert "val_error" not in run.summary


def test_an_experiment_is_a_tag_and_no_group_which_would_average_unlike_nets(make):
    run_dir = make()
    run_dir.config["choices"]["experiment"] = "digits_depth"
    send_run(run_dir)
    run = OfflineRun(run_dir.path).run
    assert list(run.tags) == ["digits_depth", "residual", "resnet", "digits"]
    assert run.run_group == "resnet8"


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
    start_and_kill(
        run_dir, lambda: [len(run["history"]) for run in server.runs.values()] == [len(ROWS)]
    )
    run_dir.truncate(20)
    send_run(run_dir, [ROWS[2], {"iteration": 40, "lr": 0.01}])
    ((name, run),) = server.runs.items()
    assert name == stored(run_dir)["id"]
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
    assert name == stored(run_dir)["id"]
    assert [row["iteration"] for row in run["history"]] == [10, 20, 30]


def test_offline_files_are_removed_when_the_run_is_sent(make, server):
    run_dir = make()
    (run_dir.path / "wandb" / "offline-run-20260101_000000-before").mkdir(parents=True)
    send_run(run_dir)
    directories = (run_dir.path / "wandb").glob("*run-*-*")
    assert [path.name.partition("-")[0] for path in directories] == ["run"]


def test_a_server_that_is_lost_does_not_stop_a_run(make, server, monkeypatch, capsys):
    monkeypatch.setattr(wandb_init, "FINISH_TIMEOUT", 1)
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


def test_a_user_can_turn_wandb_off(make, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run_dir = make()
    send_run(run_dir)
    assert not (run_dir.path / "wandb").exists()
    assert capfd.readouterr() == ("", "")


def test_a_run_repeated_in_another_directory_is_another_run_of_wandb(make, server, tmp_path):
    first = make()
    send_run(first)
    second = make(f"output_dir={tmp_path}/colleague")
    send_run(second, ROWS[:1], SUMMARY | {"test_error": 1.0})
    runs = [server.runs[stored(run_dir)["id"]] for run_dir in (first, second)]
    assert len(server.runs) == 2
    assert [len(run["history"]) for run in runs] == [3, 1]
    assert [run["summary"]["test_error"] for run in runs] == [50, 1]


def test_a_run_deleted_in_wandb_gets_another_id_and_stays_online(make, server, monkeypatch, capsys):
    run_dir = make()
    send_run(run_dir, ROWS[:2], summary=None)
    deleted = stored(run_dir)["id"]
    server.deleted.add(deleted)
    del server.runs[deleted]
    capsys.readouterr()
    # The refused start alone is not waited for: on a busy machine the others take longer.
    monkeypatch.setattr(wandb_init, "START_TIMEOUT", 1)
    init_again = WandbRun._init_again

    def init_patiently(run):
        monkeypatch.setattr(wandb_init, "START_TIMEOUT", 60)
        return init_again(run)

    monkeypatch.setattr(WandbRun, "_init_again", init_patiently)
    for _ in range(2):  # the second start has a good id from the beginning
        send_run(run_dir, [])
    ((name, run),) = server.runs.items()
    assert name == stored(run_dir)["id"] != deleted
    assert [row["iteration"] for row in run["history"]] == [10, 20]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "is shown at" not in line] == [
        f"W&B no longer has the run of {run_dir.path}, which was deleted there: it is sent as a "
        f"new one, {name}"
    ]


def test_a_server_that_answers_later_receives_the_rows_from_the_first(
    make, server, monkeypatch, capsys
):
    run_dir = make()
    with monkeypatch.context() as unreachable:
        unreachable.setattr(wandb_callback, "choose_mode", lambda: ("offline", "it is silent"))
        run = wandb_run(run_dir)
        run.start()
        run.on_validation_end()  # too early to try again
    run_dir.append_metrics(COLUMNS, ROWS[0])
    run.send(ROWS[0])
    assert not server.runs
    run.retry_at = time.monotonic()
    run.on_validation_end()
    run.send(ROWS[1])
    run.finish(0)
    ((name, sent),) = server.runs.items()
    assert name == stored(run_dir)["id"]
    assert [row["iteration"] for row in sent["history"]] == [10, 20]
    assert not [*run_dir.path.glob("wandb/offline-run-*")]
    assert "W&B is offline (it is silent)" in capsys.readouterr().out


def test_a_run_that_is_offline_on_request_does_not_try_the_server(make):
    with wandb_run(make()) as run:
        run.start()
        assert run.retry_at is None


def test_earlier_parts_are_removed_after_a_complete_upload(make, server):
    run_dir = make()
    send_run(run_dir, ROWS[:1], summary=None)
    time.sleep(1.1)  # W&B names parts by the second
    send_run(run_dir, ROWS[1:])
    (part,) = run_dir.path.glob("wandb/run-*-*")
    assert (run_dir.path / "wandb" / "latest-run").resolve() == part


def start_and_raise(run_dir, error):
    with wandb_run(run_dir) as run:
        run.start()
        raise error


def raised(error, context=None):
    """Return an error as if it were raised while another one is handled."""
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    ("error", "code", "preempted"),
    [
        (ZeroDivisionError(), 1, False),
        (Interrupted(signal.SIGTERM, "saved"), 1, True),
        (KeyboardInterrupt(), 255, False),
        (raised(SystemExit(1), KeyboardInterrupt()), 255, False),  # as Lightning ends a run
    ],
)
def test_a_run_shows_whether_it_failed_or_was_preempted_or_killed(
    make, server, error, code, preempted
):
    with pytest.raises(type(error)):
        start_and_raise(make(), error)
    (sent,) = server.runs.values()
    assert (sent["exit_code"], sent["preempting"]) == (code, preempted)


@pytest.fixture
def agent(server, monkeypatch):
    """The environment of a trial that `wandb agent` started."""
    values = {"SWEEP_ID": "sweep", "RUN_ID": "assigned", "ENTITY": "team", "PROJECT": "theirs"}
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def test_a_trial_of_an_agent_is_the_run_that_wandb_assigned(agent, server, make):
    run_dir = make()
    send_run(run_dir)
    ((name, run),) = server.runs.items()
    assert (name, run["project"], run["entity"]) == ("assigned", "theirs", "team")
    assert stored(run_dir) == {"entity": "team", "project": "theirs", "id": "assigned"}
    assert [row["iteration"] for row in run["history"]] == [10, 20, 30]


def test_a_trial_that_was_trained_before_still_sends_its_rows_and_its_result(
    make, server, request, capsys
):
    command = ["n=1", "trainer.precision=32-true", "logger=wandb"]
    run_dir = make("logger=wandb")
    send_run(run_dir, summary=SUMMARY | {"test_error_top5": 5.0, "images_per_second": 9.0})
    request.getfixturevalue("agent")
    wandb.teardown()  # it has read the environment, as no new process would have
    result = call_here(capsys, *command, f"output_dir={run_dir.path.parents[1]}")
    assert result.returncode == 0
    trial = server.runs["assigned"]
    assert [row["iteration"] for row in trial["history"]] == [10, 20, 30]
    assert (trial["summary"]["test_error"], trial["exit_code"]) == (50, 0)


def test_a_trial_that_the_agent_stops_ends_in_order_and_is_not_requeued(
    agent, server, make, capsys, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(SystemExit) as ended, requeue_if_interrupted():
        start_and_raise(make(), Interrupted(signal.SIGTERM, "saved"))
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith("saved; ended by the W&B agent\n")
    sent = server.runs["assigned"]
    assert (sent["exit_code"], sent["preempting"]) == (0, False)


@pytest.mark.parametrize("enabled", [True, False])
def test_system_metrics_are_measured_unless_turned_off(make, monkeypatch, enabled):
    init, settings = wandb.init, []

    def record(**options):
        settings.append(options["settings"])
        return init(**options)

    monkeypatch.setattr(wandb, "init", record)
    run_dir = make("logger=wandb", f"logger.wandb.system_metrics={enabled}")
    checkpointing = SimpleNamespace(saved_iteration=0)
    for run in (WandbRun(run_dir, checkpointing, depth=8), wandb_run(run_dir)):
        with run:
            run.start()
    # The second one sends a run that is trained already.
    assert [not value.x_disable_stats for value in settings] == [enabled, False]
