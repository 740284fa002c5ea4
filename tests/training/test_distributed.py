"""Runs on several ranks, over gloo: what must not depend on the world size, and lost ranks."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, KillBefore, Killed
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from interruptible_run import start_ranks
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy
from ranks import run_on_ranks, train_and_capture
from run_comparison import assert_same_run, load_checkpoint
from torch import distributed, nn
from torch.distributed import distributed_c10d

from src import train
from src.config import CONF, compose_config
from src.evaluation.evaluator import evaluate
from src.training.callbacks.preemption import Preemption
from src.training.callbacks.wandb import WandbRun
from src.training.distributed import (
    LOST_PROCESS_TIMEOUT,
    START_TIMEOUT,
    LostProcessTimeout,
    cluster_environment,
    disable_sigterm_broadcast,
    is_distributed,
    make_strategy,
    rank_zero_works,
    set_timeout,
)
from src.training.intervals import Intervals
from src.training.trainer import RunCallbacks

CPU = {"accelerator": "cpu", "precision": "32-true"}
BATCH = 126  # a multiple of 2 and of 3
SHARED = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    f"recipe.batch_size={BATCH}",
]


def error_counts(results):
    """Return top-1 errors, top-5 errors and images, as numbers of images."""
    images = results["images"]
    return (
        round(results["test_error"] * images / 100),
        round(results["test_error_top5"] * images / 100),
        images,
    )


@pytest.mark.fault_injection(
    "processes", "errors of a run on 2 and 3 ranks, and of its checkpoint on one"
)
@pytest.mark.parametrize(("world_size", "test_images"), [(2, 500), (3, 499)])
def test_a_run_is_evaluated_as_its_checkpoint_is_by_one_process(find, world_size, test_images):
    """Each rank has batch norm statistics of its own until it evaluates."""
    run_dir = find(
        *TINY, *SHARED, f"data.test_images={test_images}", f"trainer.devices={world_size}"
    )
    output, *others = run_on_ranks(world_size, train_in_small_batches, run_dir)
    share = BATCH // world_size
    assert f"world size {world_size}, batch norm over {share} images" in output
    assert others == [""] * (world_size - 1)

    config = run_dir.config | {"weights": run_dir.last_checkpoint}
    results = evaluate([config], CPU, "center", "the run")
    assert results["images"] == test_images
    assert results["test_error"] == run_dir.summary["test_error"]
    assert results["test_error_top5"] == run_dir.summary["test_error_top5"]
    assert [row["lr"] for row in run_dir.rows()] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001])
    # The training error is that of the two iterations since the evaluation before.
    errors = run_dir.summary["train_error"] * 2 * BATCH / 100
    assert errors == pytest.approx(round(errors))


def train_in_small_batches(run_dir):
    """Train with evaluation batches that neither the ranks nor the test images fill."""
    import src.data.in_memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(src.data.in_memory, "TEST_BATCH", 64)
        return train_and_capture(run_dir)


@pytest.mark.slow
@pytest.mark.fault_injection(
    "processes", "a run on two ranks killed and resumed, compared with an undisturbed one"
)
def test_a_run_on_two_ranks_resumes_bit_exactly(find, tmp_path):
    overrides = [
        "n=1",
        *SHARED,
        "trainer.devices=2",
        "recipe.iterations=24",
        "recipe.eval_every=20",
        "recipe.log_every=1",
        "recipe.checkpoint_every=3",
        "checkpoint_seconds=0",
        "recipe.schedule.lr=0.01",
    ]
    undisturbed, run_dir = find(*overrides, f"output_dir={tmp_path}/undisturbed"), find(*overrides)
    run_on_ranks(2, train_and_capture, undisturbed)
    assert run_on_ranks(2, train_until_killed, run_dir, 5) == [True, True]
    output, _ = run_on_ranks(2, train_and_capture, run_dir)
    assert "resumes at iteration 3 of 24" in output
    assert_same_run(run_dir, undisturbed, iterations=24)


def train_until_killed(run_dir, iterations):
    """Return whether a run was killed before it ended."""
    try:
        train.run(run_dir, [KillBefore(iterations)])
    except Killed:
        return True
    return False


class MeanColorNet(nn.Module):
    """Scores from the first pixel and the mean color, so that each view scores differently."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 12, bias=False)

    def forward(self, x):
        return self.fc(x[:, :, 0, 0] + 3 * x.mean((2, 3)))


@pytest.mark.fault_injection(
    "processes", "every test image counted once on 2 and 3 ranks, by each protocol"
)
def test_every_image_counts_once_whatever_the_world_size(find, tmp_path, record_property):
    """500 digits; seven images, one unreadable; three, so that one of three ranks can read none."""
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(MeanColorNet().state_dict(), weights)
    data = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml"))
    model = {"_target_": f"{__name__}.MeanColorNet"}
    nets = {}
    for count, per_class in ((7, 3), (3, 1)):
        root = make_folders(tmp_path / str(count), val=per_class)
        for path in sorted(root.glob("val/*/*"))[::4][: 3 * per_class - count]:
            path.unlink()
        sorted(root.glob("val/*/*"))[1].write_bytes(b"not an image")
        own = {"root": str(root), "normalization": "channel", "num_workers": 0, "on_bad": "skip"}
        nets[count] = {"model": model, "data": data | own, "seed": 0, "weights": weights}
    digits = OmegaConf.to_container(compose_config("data=digits"), resolve=True)
    digits_net = {"model": model, "data": digits["data"], "seed": 0, "weights": weights}

    cases = [(nets[7], protocol) for protocol in ("center", "10crop", "multiscale")]
    cases += [(nets[3], "center"), (digits_net, "center")]
    alone = evaluate_on_rank(1, cases)
    assert [counts[2] for counts, _ in alone] == [6, 6, 6, 2, 500]

    record_property("tried", 2 * len(cases))
    for world_size in (2, 3):
        first, *others = run_on_ranks(world_size, evaluate_on_rank, world_size, cases)
        for (counts, output), (expected, _) in zip(first, alone, strict=True):
            assert counts == expected
            assert len(output.splitlines()) == 1
        # All ranks know the result; rank 0 alone prints it.
        assert others == [[(expected, "") for expected, _ in alone]] * (world_size - 1)


def evaluate_on_rank(world_size, cases):
    """Return the error counts of each case, and what is printed."""
    results = []
    for config, protocol in cases:
        with redirect_stdout(io.StringIO()) as printed:
            result = evaluate([config], CPU | {"devices": world_size}, protocol, "a net")
        results.append((error_counts(result), printed.getvalue()))
    return results


@pytest.mark.parametrize("images", [3, 7, 12])
def test_the_ranks_shares_of_the_test_images_are_disjoint_and_complete(images, monkeypatch):
    monkeypatch.setattr("src.data.in_memory.TEST_BATCH", 2)

    def share(rank, world_size):
        config = compose_config("data=digits", f"data.test_images={images}").data
        data = instantiate(config, seed=0, batch_size=world_size, iterations=1)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, num_devices=world_size, strategy=strategy
        )
        data.setup()
        return torch.cat([batch for batch, _ in data.test_dataloader()])

    complete = share(0, 1)
    assert len(complete) == images
    for world_size in (2, images):
        shares = [share(rank, world_size) for rank in range(world_size)]
        interleaved = torch.full_like(complete, torch.nan)
        for rank, own in enumerate(shares):
            interleaved[rank::world_size] = own
        assert torch.equal(interleaved, complete)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match=f"{images} images are too few"):
        share(0, images + 1)


@pytest.mark.fault_injection("bad input", "a batch size that is not a multiple of the world size")
@pytest.mark.parametrize(("devices", "batch"), [(2, 127), (3, 128), (3, 2)])
def test_a_batch_that_the_ranks_cannot_share_is_an_error_before_anything_is_written(
    find, devices, batch
):
    run_dir = find(
        f"recipe.batch_size={batch}", f"trainer.devices={devices}", "trainer.accelerator=cpu"
    )
    with pytest.raises(ValueError, match=f"batch_size={batch} .*multiple of {devices}"):
        train.run(run_dir)
    assert not run_dir.path.exists()


class HangOnRank1(Callback):
    """Make rank 1 hang in iteration 6, and rank 0 wait for it no longer than some seconds."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5 and trainer.global_rank == 1:
            self.pid_file.write_text(str(os.getpid()))
            signal.pause()
        elif trainer.global_step == 5:
            while not self.pid_file.exists():
                time.sleep(0.01)
            set_timeout(timedelta(seconds=3))


def assert_ended_by_a_lost_process(last_line, run_dir):
    assert last_line.startswith("another process of this run died or hangs")
    assert "imed out" in last_line
    assert run_dir.error.read_text() == last_line
    assert load_checkpoint(run_dir)["global_step"] == 4
    assert run_dir.summary is None


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_with_a_message(find, tmp_path):
    run_dir, log = find(*TINY, *SHARED, "trainer.devices=2"), tmp_path / "log"
    hang = HangOnRank1(tmp_path / "pid")
    first, second = start_ranks(run_dir, log, None, None, callbacks=[hang])
    assert first.wait() == 1
    second.kill()
    assert_ended_by_a_lost_process(log.read_text().splitlines()[-1], run_dir)


@pytest.mark.slow
@pytest.mark.fault_injection("processes", "a process that hangs")
def test_a_rank_that_hangs_is_killed_by_the_rank_that_started_it(find, tmp_path):
    run_dir = find(*TINY, *SHARED, "trainer.devices=2")
    (tmp_path / "run_dir").write_bytes(pickle.dumps(run_dir))
    script = tmp_path / "train_with_hang.py"
    script.write_text(
        "import pickle, sys\n"
        "from pathlib import Path\n"
        f"sys.path[:0] = {sys.path}\n"
        "from src import train\n"
        "from src.cli import run_entry_point\n"
        "from test_distributed import HangOnRank1\n"
        "here = Path(sys.argv[1])\n"
        "run_dir = pickle.loads((here / 'run_dir').read_bytes())\n"
        "run_entry_point(lambda: train.run(run_dir, [HangOnRank1(here / 'pid')]))\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert_ended_by_a_lost_process(done.stderr.strip().splitlines()[-1], run_dir)
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")
    assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"devices": 1}, False),
        ({"devices": "1"}, False),
        ({"devices": 2}, True),
        ({"devices": "2"}, True),
        ({"devices": [0]}, False),
        ({"devices": [0, 3]}, True),
        ({"devices": "0,3"}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"devices": "auto"}, True),
        ({"devices": -1, "accelerator": "gpu"}, True),
        ({"devices": "auto", "accelerator": "cpu"}, False),
    ],
)
def test_a_config_is_distributed_if_it_asks_for_several_processes(monkeypatch, options, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert is_distributed({"accelerator": "auto", "num_nodes": 1} | options) == expected


def test_several_processes_use_ddp_with_a_long_timeout_for_the_start():
    trainer = {"accelerator": "cpu", "num_nodes": 1, "strategy": "auto"}
    for options in ({"devices": 2}, {"devices": 1, "strategy": "ddp"}):
        strategy = make_strategy(trainer | options)
        assert isinstance(strategy, DDPStrategy)
        assert strategy._timeout == START_TIMEOUT
        # Broadcasting the batch norm statistics in each step would change what rank 0 trains with.
        assert strategy._ddp_kwargs["broadcast_buffers"] is False
    assert make_strategy(trainer | {"devices": 1}) == "auto"
    assert make_strategy(trainer | {"devices": 2, "strategy": "fsdp"}) == "fsdp"


def test_once_all_ranks_have_started_a_lost_one_is_noticed_within_a_minute(tmp_path):
    assert LOST_PROCESS_TIMEOUT.total_seconds() < 60
    store = f"file://{tmp_path}/store"
    distributed.init_process_group(
        "gloo", init_method=store, rank=0, world_size=1, timeout=START_TIMEOUT
    )
    try:
        group = distributed_c10d._get_default_group()
        backend = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout == START_TIMEOUT
        timeouts = []  # at the barrier at which the others wait for what rank 0 starts alone
        strategy = SimpleNamespace(barrier=lambda: timeouts.append(backend.options._timeout))
        two_ranks = SimpleNamespace(world_size=2, strategy=strategy)
        LostProcessTimeout().on_train_start(two_ranks)
        assert timeouts == [START_TIMEOUT]
        assert backend.options._timeout == LOST_PROCESS_TIMEOUT
    finally:
        distributed.destroy_process_group()


@pytest.fixture
def timeouts(monkeypatch):
    """Play a process group of two ranks, and record the timeouts that it is given."""
    recorded = []
    monkeypatch.setattr("src.training.distributed.set_timeout", recorded.append)

    def use(backend):
        monkeypatch.setattr(distributed, "get_backend", lambda: backend)
        return recorded

    return use


def test_nccl_keeps_its_long_timeout(timeouts):
    """When that is over, NCCL's watchdog kills the process without a message."""
    recorded = timeouts("nccl")
    two_ranks = SimpleNamespace(world_size=2, strategy=SimpleNamespace(barrier=lambda: None))
    LostProcessTimeout().on_train_start(two_ranks)
    with rank_zero_works(two_ranks):
        pass
    assert recorded == []


def test_the_timeout_is_shortened_after_all_other_callbacks_have_started(find):
    callbacks = RunCallbacks(find("logger=wandb"), "test").ordered
    assert isinstance(callbacks[-1], LostProcessTimeout)
    assert any(isinstance(callback, WandbRun) for callback in callbacks)


def test_what_rank_0_does_alone_may_take_as_long_as_the_start(timeouts):
    recorded = timeouts("gloo")
    with rank_zero_works(SimpleNamespace(world_size=2)):
        assert recorded == [START_TIMEOUT]
    assert recorded == [START_TIMEOUT, LOST_PROCESS_TIMEOUT]
    with rank_zero_works(SimpleNamespace(world_size=1)):
        assert len(recorded) == 2


class PlayedWork:
    """An operation that the other rank takes part in until it is lost."""

    lost = False

    def wait(self):
        if self.lost:
            raise RuntimeError("Timed out waiting 50000ms for recv operation to complete")


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_a_lost_rank_ends_what_waits_for_it_on_the_gpu(find, monkeypatch, backend):
    """Otherwise the process that found it out would wait for its GPU while it unwinds."""
    aborted, work = [], PlayedWork()
    monkeypatch.setattr("src.training.distributed._abort_process_group", lambda: aborted.append(1))
    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(distributed, "all_reduce", lambda *_, **__: work)
    run_dir = find(*TINY)
    preemption = Preemption(run_dir, Intervals.of(run_dir.config))
    preemption.group = None

    for iteration, asked in ((1, True), (2, False), (5, True)):
        preemption.on_train_batch_end(SimpleNamespace(world_size=2, global_step=iteration))
        # A row is measured in iteration 2, which waits for the GPU: the answer is taken before.
        assert bool(preemption.question) == asked
    assert aborted == []
    work.lost = True
    with pytest.raises(RuntimeError, match="Timed out"):
        preemption.on_train_batch_end(SimpleNamespace(world_size=2, global_step=7))
    assert aborted == [1] * (backend == "nccl")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, LightningEnvironment),
        ({"TORCHELASTIC_RUN_ID": "1"}, TorchElasticEnvironment),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, SLURMEnvironment),
    ],
)
def test_lightning_is_told_who_started_the_processes(monkeypatch, environment, expected):
    """Otherwise it asks mpi4py where that is installed, which can hang."""
    for name in ("SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(cluster_environment()) is expected


def test_lightnings_question_about_sigterm_in_each_iteration_is_turned_off():
    """Both names are private: this fails when an upgrade of Lightning removes one."""
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    disable_sigterm_broadcast(trainer)
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None
    assert "_broadcast_sigterm_tensor" in _TrainingEpochLoop.advance.__code__.co_names
