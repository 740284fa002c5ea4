"""A run that is killed again and again ends as if it had not been: real processes, killed from outside with SIGKILL."""

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from interruptible_run import ALL, DOING, DOING_AT_ITS_END, InterruptibleRun

from src.runs.run_dir import RunDir
from src.training.checkpoint_io import latest_valid_checkpoint

# Each kind of step at a beat of its own. Of the things a run does, so many are in ten iterations.
OFTEN = [
    "n=1",
    "recipe.eval_every=5",
    "recipe.log_every=3",
    "recipe.checkpoint_every=2",
    "trainer.precision=32-true",
]
TIMES = {
    "making its folder": 1,
    "training": 10,
    "writing rows": 8,
    "evaluating": 2,
    "writing a checkpoint": 6,
}
CLOCKS = {"callbacks.Record.train_seconds", "callbacks.Record.eval_seconds"}


def differing(one: object, other: object, at: str = "") -> Iterator[str]:
    """The places at which two checkpoints differ, as `a.b.c`; tensors must be equal in every bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield at
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            yield from differing(one.get(key), other.get(key), f"{at}.{key}".lstrip("."))
    elif (
        isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other)
    ):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differing(a, b, f"{at}.{i}")
    elif one != other or type(one) is not type(other):
        yield at


def assert_nothing_lost_and_nothing_wrong(whole: RunDir, folder: RunDir) -> None:
    """Every file of a run is that of another, but for what a clock says."""
    files = [
        sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
        for run in (whole, folder)
    ]
    assert files[0] == files[1]
    assert whole.metrics.read_bytes() == folder.metrics.read_bytes()
    assert whole.layers.read_bytes() == folder.layers.read_bytes()
    one, other = (torch.load(run.last_checkpoint, weights_only=True) for run in (whole, folder))
    assert len(one["state_dict"]) > 40 and len(one["optimizer_states"][0]["state"]) > 20
    assert set(differing(one, other)) <= CLOCKS
    assert set(differing(whole.summary, folder.summary)) <= {"seconds", "images_per_second"}


def reached(folder: RunDir) -> int:
    """The iteration at which a run would go on."""
    path = latest_valid_checkpoint(folder.last_checkpoint)
    return torch.load(path, weights_only=True)["global_step"] if path else 0


@pytest.mark.fault_injection(
    "kill", "SIGKILL in a training step, an evaluation, a checkpoint, a row, or at a random time"
)
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    find, tmp_path, request, record_property
):
    """Killed at a random line of each thing it does first, then of any or at any time, and twice at its end."""
    kills, draw, log = request.config.getoption("--kills"), random.Random(0), tmp_path / "log"
    overrides = [*OFTEN, "data.val_images=100", f"recipe.iterations={10 * kills + 5}"]
    whole, folder = find(*overrides, f"output_dir={tmp_path}/whole"), find(*overrides)
    started = time.monotonic()
    undisturbed = InterruptibleRun(whole, log)
    assert undisturbed.end() == 0, log.read_text()
    seconds = time.monotonic() - started
    lines = dict(zip(ALL, undisturbed.lines, strict=True))
    assert all(lines[what] for what in (*DOING, *DOING_AT_ITS_END))

    fell, before = Counter(), 0
    then = [draw.choice([draw.choice(DOING), None]) for _ in range(kills)]
    for what in (*[*DOING, *then][:kills], *DOING_AT_ITS_END):
        if what:
            process = InterruptibleRun(
                folder, log, (what, draw.randrange(TIMES.get(what, 1)), draw.randrange(lines[what]))
            )
            process.reach()
        else:
            process = InterruptibleRun(
                folder, log, ("training", 10, 0)
            )  # where it waits, so as not to come to its end
            assert not process.ends_within(draw.uniform(0, 1 + seconds / kills))
        fell[process.kill()] += 1
        assert before <= (before := reached(folder))
        assert (
            folder.summary is None or what == "writing its summary"
        )  # at its last lines it is written
    assert {*DOING[:kills], *DOING_AT_ITS_END} <= {*fell}, fell
    assert InterruptibleRun(folder, log).end() == 0, log.read_text()
    assert_nothing_lost_and_nothing_wrong(whole, folder)
    record_property("tried", fell.total())


def group(folder: RunDir, log, *stops: tuple[str, int, int] | None) -> list[InterruptibleRun]:
    """A run on two processes over gloo, started as torchrun does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
    }
    of_all |= {"TORCHELASTIC_RUN_ID": "one", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        InterruptibleRun(folder, log, stop, RANK=str(rank), LOCAL_RANK=str(rank), **of_all)
        for rank, stop in enumerate(stops)
    ]


@pytest.mark.fault_injection("kill", "SIGKILL to all of two processes that train together")
def test_a_run_on_two_processes_killed_in_the_middle_ends_as_if_it_had_not_been(find, tmp_path):
    overrides = [*OFTEN, "recipe.iterations=10", "trainer.devices=2", "trainer.accelerator=cpu"]
    whole, folder, log = (
        find(*overrides, f"output_dir={tmp_path}/whole"),
        find(*overrides),
        tmp_path / "log",
    )
    assert [rank.end() for rank in group(whole, log, None, None)] == [0, 0], log.read_text()
    ranks = group(folder, log, None, ("training", 6, 20))
    ranks[1].reach()
    for rank in ranks:
        os.kill(rank.process.pid, 9)
    assert [rank.end() for rank in ranks] == [-9, -9]
    assert reached(folder) == 6
    assert [rank.end() for rank in group(folder, log, None, None)] == [0, 0], log.read_text()
    assert "on 2 devices" in log.read_text()
    assert_nothing_lost_and_nothing_wrong(whole, folder)
