"""Fixtures for all tests: composing configs as the command line does, training in this process."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from pytorch_lightning import Callback, Trainer

from src import train
from src.config import CONF, compose_config, find_run_dir
from src.runs.run_dir import RunDir

if TYPE_CHECKING:
    from fake_wandb_server import FakeServer

pytest_plugins = ["fault_injection"]

if find_spec("sklearn") is None:
    # A borrowed GPU machine may lack it; its tests are content with digits that mean nothing.
    rng = np.random.default_rng(0)
    random_digits = SimpleNamespace(
        images=rng.integers(0, 17, (1797, 8, 8)).astype(float), target=rng.integers(0, 10, 1797)
    )
    sys.modules["sklearn"] = ModuleType("sklearn")
    sys.modules["sklearn.datasets"] = SimpleNamespace(load_digits=lambda: random_digits)

ROOT = Path(__file__).resolve().parents[1]
CIFAR10_FILES = ROOT / "data" / "cifar-10-batches-py"
MNIST_FILES = ROOT / "data" / "MNIST" / "raw"
BCCD_FILES = ROOT / "data" / "bccd"

# Eight iterations of the smallest net, for tests in which the result does not matter.
TINY = [
    "n=1",
    "recipe.iterations=8",
    "recipe.eval_every=3",
    "recipe.log_every=2",
    "recipe.checkpoint_every=2",
    "checkpoint_seconds=0",
]

compose_run = compose_config


class Killed(BaseException):
    """Stop a run in this process, as a signal would; no `except Exception` catches it."""


class KillBefore(Callback):
    """Kill a run when it is about to train on after so many iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.iterations:
            raise Killed


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "gpu":
        # On a machine with a GPU all other tests, and what they start, use the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # The nets of the tests are too small for threads, and on a busy machine threads that wait for
    # each other make a run ten times slower. The processes that tests start inherit the variable.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not CIFAR10_FILES.exists():
        missing["cifar10"] = f"CIFAR-10 is not in {CIFAR10_FILES}"
    if not MNIST_FILES.exists():
        missing["mnist"] = f"MNIST is not in {MNIST_FILES}"
    if not BCCD_FILES.exists():
        missing["bccd"] = f"BCCD is not in {BCCD_FILES}"
    if not torch.cuda.is_available():
        missing["gpu"] = "there is no GPU"
    for item in items:
        for marker in missing.keys() & item.keywords:
            item.add_marker(pytest.mark.skip(reason=missing[marker]))


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Close the figures that a test has drawn, which matplotlib would keep."""
    yield
    # Not imported here: most tests draw nothing.
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session", autouse=True)
def hydra() -> Iterator[None]:
    """Initialize Hydra, which `compose_config` needs."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., RunDir]:
    """Return the run directory of a command line, below the directory of this test."""
    return lambda *overrides: find_run_dir(
        compose_config(f"output_dir={tmp_path}/runs", *overrides)
    )


@pytest.fixture
def tiny(find: Callable[..., RunDir]) -> Callable[..., RunDir]:
    """Train `TINY` with further overrides in this process, and return its run directory."""

    def run(*overrides: str, callbacks: Sequence[Callback] = ()) -> RunDir:
        run_dir = find(*TINY, "trainer.precision=32-true", *overrides)
        train.run(run_dir, callbacks)
        return run_dir

    return run


@pytest.fixture
def tiny_until(tiny: Callable[..., RunDir]) -> Callable[..., None]:
    """Train as `tiny` does, and kill the run after so many iterations."""

    def run(iterations: int, *overrides: str) -> None:
        with pytest.raises(Killed):
            tiny(*overrides, callbacks=[KillBefore(iterations)])

    return run


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make compile=inductor skip the compiler: only its training step differs from Lightning's."""
    monkeypatch.setattr("src.models.residual_net.ResidualNet.compile", lambda net: None)


@pytest.fixture
def wandb_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user of W&B who asked for nothing to be sent; see `fake_wandb_server.environment`."""
    import wandb
    from fake_wandb_server import environment

    from src.training.wandb_connection import server_answers

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    server_answers.cache_clear()
    yield
    wandb.teardown()  # forget the settings that it took from the environment


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeServer"]:
    """A W&B server, which receives that user's runs."""
    from fake_wandb_server import FakeServer

    with FakeServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_MODE", "online")
        yield server
