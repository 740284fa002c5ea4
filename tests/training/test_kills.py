"""Runs killed with SIGKILL: once resumed, they end bitwise identical to an undisturbed run."""

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from interruptible_run import ALL_PHASES, LAST_PHASES, PHASES, InterruptibleRun, start_ranks

from src.runs.run_dir import RunDir
from src.training.checkpoint_io import latest_valid_checkpoint

# Log, evaluate and save at intervals that coincide at some iterations only.
OVERRIDES = [
    "n=1",
    "recipe.eval_every=5",
    "recipe.log_every=3",
    "recipe.checkpoint_every=2",
    "checkpoint_seconds=0",
    "trainer.precision=32-true",
]
# How often ten iterations enter each phase.
OCCURRENCES = {
    "creating its directory": 1,
    "training": 10,
    "writing rows": 9,
    "evaluating": 2,
    "writing a checkpoint": 6,
}
TIMES = {"callbacks.Stopwatch.train_seconds", "callbacks.Stopwatch.eval_seconds"}


def differences(one: object, other: object, key: str = "") -> Iterator[str]:
    """Yield the keys, as `a.b.c`, at which two checkpoints are not bitwise identical."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield key
    elif isinstance(one, dict) and isinstance(other, dict):
        for name in {*one, *other}:
            yield from differences(one.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    elif (
        isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other)
    ):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{key}.{i}")
    elif one != other or type(one) is not type(other):
        yield key


def assert_identical_except_times(undisturbed: RunDir, run_dir: RunDir) -> None:
    """Assert that two runs have the same files with the same content, except measured times."""
    files, expected = (
        sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
        for run in (run_dir, undisturbed)
    )
    assert files == expected
    assert run_dir.metrics.read_bytes() == undisturbed.metrics.read_bytes()
    assert run_dir.layers.read_bytes() == undisturbed.layers.read_bytes()

    one, other = (
        torch.load(run.last_checkpoint, weights_only=True) for run in (undisturbed, run_dir)
    )
    assert len(one["state_dict"]) > 40
    assert len(one["optimizer_states"][0]["state"]) > 20
    assert set(differences(one, other)) <= TIMES
    assert set(differences(undisturbed.summary, run_dir.summary)) <= {
        "seconds",
        "images_per_second",
    }


def resume_iteration(run_dir: RunDir) -> int:
    """Return the iteration at which a run would resume."""
    path = latest_valid_checkpoint(run_dir.last_checkpoint)
    return torch.load(path, weights_only=True)["global_step"] if path else 0


@pytest.mark.fault_injection(
    "kill", "SIGKILL in a training step, an evaluation, a checkpoint, a row, or at a random time"
)
def test_a_run_killed_many_times_ends_bitwise_identical_to_an_undisturbed_one(
    find, tmp_path, request, record_property
):
    """Kill at a random line of each phase, then of random ones or at any time, then at the end."""
    kills, log = request.config.getoption("--kills"), tmp_path / "log"
    rng = random.Random(0)
    overrides = [*OVERRIDES, "data.val_images=100", f"recipe.iterations={10 * kills + 5}"]
    undisturbed = find(*overrides, f"output_dir={tmp_path}/undisturbed")
    run_dir = find(*overrides)
    start = time.monotonic()
    first = InterruptibleRun(undisturbed, log)
    assert first.wait() == 0, log.read_text()
    seconds = time.monotonic() - start
    lines = dict(zip(ALL_PHASES, first.lines, strict=True))
    assert all(lines[phase] for phase in (*PHASES, *LAST_PHASES)), lines

    killed, before = Counter(), 0
    random_phases = [rng.choice([rng.choice(PHASES), None]) for _ in range(kills)]
    for phase in (*[*PHASES, *random_phases][:kills], *LAST_PHASES):
        if phase:
            occurrence = rng.randrange(OCCURRENCES.get(phase, 1))
            stop = (phase, occurrence, rng.randrange(lines[phase]))
            process = InterruptibleRun(run_dir, log, stop)
            process.wait_for_stop()
        else:
            # It stops and waits before its end, however long the random time is.
            process = InterruptibleRun(run_dir, log, ("training", 10, 0))
            assert not process.ends_within(rng.uniform(0, 1 + seconds / kills))
        killed[process.kill()] += 1
        after = resume_iteration(run_dir)
        assert after >= before
        before = after
        # The last lines of writing the summary come after the file is there.
        assert run_dir.summary is None or phase == "writing its summary"
    assert {*PHASES[:kills], *LAST_PHASES} <= {*killed}, killed

    assert InterruptibleRun(run_dir, log).wait() == 0, log.read_text()
    assert_identical_except_times(undisturbed, run_dir)
    record_property("tried", killed.total())


@pytest.mark.slow
@pytest.mark.fault_injection("kill", "SIGKILL to both processes of a run on two ranks")
def test_a_run_on_two_ranks_that_are_killed_ends_bitwise_identical_to_an_undisturbed_one(
    find, tmp_path
):
    overrides = [
        *OVERRIDES,
        "recipe.iterations=10",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
    ]
    undisturbed = find(*overrides, f"output_dir={tmp_path}/undisturbed")
    run_dir, log = find(*overrides), tmp_path / "log"
    assert [rank.wait() for rank in start_ranks(undisturbed, log, None, None)] == [0, 0], (
        log.read_text()
    )
    ranks = start_ranks(run_dir, log, None, ("training", 6, 20))
    ranks[1].wait_for_stop()
    for rank in ranks:
        rank.signal(9)
    assert [rank.wait() for rank in ranks] == [-9, -9]
    assert resume_iteration(run_dir) == 6
    assert [rank.wait() for rank in start_ranks(run_dir, log, None, None)] == [0, 0], (
        log.read_text()
    )
    assert "world size 2" in log.read_text()
    assert_identical_except_times(undisturbed, run_dir)
