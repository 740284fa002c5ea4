"""What a run writes, that it is reproducible, and that it can be stopped anywhere."""

import hashlib
import os
import signal

import pytest
import torch
import yaml
from command_line import call, call_here
from conftest import TINY, Killed
from interruptible_run import start_ranks
from pytorch_lightning import Callback
from run_comparison import assert_same_run
from stopping import KillInHook

from src.runs.run_dir import RunDir
from src.training.callbacks.checkpointing import Checkpointing
from src.training.callbacks.stopwatch import Stopwatch

SUMMARY = (
    "model n depth shortcut data task seed val_images train_images iterations parameters macs "
    "train_error val_error test_error test_error_top5 images_per_second seconds precision "
    "eval_precision device devices threads versions weights_sha256 git_commit"
)

# A warm-up that ends during the run, so that the schedule has a state to restore.
WARM_UP = ("recipe.schedule.warmup_from_n=1", "recipe.schedule.warmup_error=89.0", "seed=3")
SMALL = ("recipe.batch_size=16", "data.test_images=20")

# The hooks in which a run writes or measures something, and the iterations at which TINY does.
STOPS = [
    *[(iteration, "on_save_checkpoint") for iteration in (2, 3, 4, 6, 8)],
    *[(iteration, "on_train_batch_end") for iteration in (1, 2, 3, 4, 6, 7, 8)],
    *[(iteration, "on_validation_start") for iteration in (3, 6, 8)],
    *[(iteration, "on_validation_end") for iteration in (3, 6, 8)],
]


def test_a_run_fills_its_directory(tiny):
    run_dir = tiny()
    names = {path.name for path in run_dir.path.iterdir()}
    csvs = {"metrics.csv", "layers.csv"}
    assert names == csvs | {"config.yaml", "summary.json", "checkpoints", "lock"}
    assert list(run_dir.summary) == SUMMARY.split()
    assert (run_dir.summary["depth"], run_dir.summary["iterations"]) == (8, 8)
    assert run_dir.summary["test_error"] == run_dir.rows()[-1]["test/error"]
    # The bytes of the weights, as its own checkpoint has them.
    state = torch.load(run_dir.last_checkpoint, weights_only=True)["state_dict"]
    content = b"".join(x.numpy().tobytes() for name, x in state.items() if name[:4] == "net.")
    assert run_dir.summary["weights_sha256"] == hashlib.sha256(content).hexdigest()
    config = yaml.safe_load((run_dir.path / "config.yaml").read_text())
    assert config["recipe"]["iterations"] == 8


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny, tmp_path):
    first = tiny()
    assert_same_run(first, tiny(f"output_dir={tmp_path}/again"))
    assert tiny("seed=1").metrics.read_text() != first.metrics.read_text()


@pytest.mark.slow
@pytest.mark.fault_injection(
    "stop", "an exception before, between and after the callbacks of each hook"
)
@pytest.mark.parametrize("before", [Stopwatch, Checkpointing, None])
def test_a_run_stopped_in_every_hook_ends_as_if_it_had_not_been_stopped(
    tiny, tmp_path, before, record_property
):
    """Stopwatch is called first, Checkpointing last: after what the others write."""
    overrides = (*WARM_UP, *SMALL)
    undisturbed = tiny(*overrides, f"output_dir={tmp_path}/undisturbed")
    assert {row["lr"] for row in undisturbed.rows()} == {0.1, 0.01, 0.001}
    stops = sorted(STOPS, key=lambda stop: stop[0])  # each attempt resumes the one before it
    record_property("tried", len(stops))
    for iteration, hook in stops:
        with pytest.raises(Killed):
            tiny(*overrides, callbacks=[KillInHook(hook, iteration, before)])
    assert_same_run(undisturbed, tiny(*overrides))


def test_a_finished_run_is_skipped_with_its_results(tiny, capsys):
    run_dir = tiny()
    before = {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*")}
    result = call_here(capsys, *command_of(run_dir))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{run_dir.path} is finished: training error ")
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*")}


@pytest.mark.fault_injection("fault", "a run directory with another config")
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_config_is_not_taken_for_this_one(tiny, capsys, finished):
    run_dir = tiny()
    if not finished:
        (run_dir.path / "summary.json").unlink()
    path = run_dir.path / "config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8"))

    result = call_here(capsys, *command_of(run_dir))
    assert (result.returncode, result.stdout) == (1, "")
    assert "recipe.optimizer.momentum was 0.8, now 0.9" in result.stderr
    assert result.stderr.endswith("move that directory away")


def test_a_run_directory_of_version_0_1_is_refused_by_all_commands(tiny, capsys, tmp_path):
    run_dir = tiny()
    path = run_dir.path / "config.yaml"
    path.write_text(path.read_text().replace("output_dir:", "runs:"))
    commands = {
        "src.train": command_of(run_dir),
        "src.evaluate": [f"run={run_dir.path}"],
        "src.report.__main__": [str(run_dir.path), "-o", str(tmp_path / "report")],
    }
    message = f"{run_dir.path} was written by version 0.1, which this version cannot read: finish"
    for module, arguments in commands.items():
        result = call_here(capsys, *arguments, module=module)
        assert result.returncode == 1
        assert message in result.stderr


@pytest.mark.slow
@pytest.mark.fault_injection("processes", "two devices that share each batch and the test images")
def test_two_devices_share_each_batch_and_the_test_images(find, tmp_path):
    """As a command, so that Lightning starts the second process; an odd number of test images."""
    overrides = [*TINY, "trainer.precision=32-true", "data.test_images=501"]
    on_two = ["trainer.accelerator=cpu", "trainer.devices=2", f"output_dir={tmp_path}/runs"]
    result = call(*overrides, *on_two)
    assert result.returncode == 0, result.stderr

    run_dir = find(*overrides)
    assert run_dir.summary["devices"] == 2
    errors = run_dir.summary["test_error"] * 501 / 100
    assert errors == pytest.approx(round(errors), abs=1e-6)
    # The errors of the last two of eight iterations, of 128 images each.
    assert (run_dir.summary["train_error"] * 256 / 100).is_integer()
    assert len(list(run_dir.path.parent.iterdir())) == 1


class KillRank(Callback):
    """Kill the process of one rank when it is about to train on after three iterations."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.fault_injection("processes", "a process that dies")
def test_a_process_that_dies_ends_the_run_with_a_message_and_the_command_resumes_it(find, tmp_path):
    overrides = [*TINY, *SMALL, "trainer.precision=32-true", "trainer.accelerator=cpu"]
    run_dir, log = find(*overrides, "trainer.devices=2"), tmp_path / "log"
    first, second = start_ranks(run_dir, log, None, None, callbacks=[KillRank(1)])
    assert second.wait() == -signal.SIGKILL
    assert first.wait() == 1
    message = log.read_text().strip().splitlines()[-1]
    assert message.startswith("another process of this run died or hangs (its own output is above)")

    assert [rank.wait() for rank in start_ranks(run_dir, log, None, None)] == [0, 0]
    assert "resumes at iteration 3 of 8 iterations in 32-true, world size 2" in log.read_text()


def command_of(run_dir: RunDir) -> list[str]:
    """Return the arguments of the command whose run is `TINY`."""
    return [*TINY, "trainer.precision=32-true", f"output_dir={run_dir.path.parents[1]}"]
