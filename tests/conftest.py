"""Helpers of the tests: composing configs as the command line does, and running them in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hydra import initialize_config_dir

from src import train
from src.benchmark.baselines import compose_run
from src.config import CONF
from src.runs.run_dir import RunDir
from src.training.callbacks.record import Record

if TYPE_CHECKING:
    from fake_wandb_server import FakeServer

pytest_plugins = ["fault_injection"]

ROOT = Path(__file__).resolve().parents[1]
CIFAR10_FILES = ROOT / "data" / "cifar-10-batches-py"

# Eight iterations of the smallest net: what a test trains where the result does not matter.
TINY = ["n=1", "recipe.iterations=8", "recipe.eval_every=3", "recipe.log_every=2", "recipe.checkpoint_every=2"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not CIFAR10_FILES.exists():
        missing["cifar10"] = f"the real CIFAR-10 is not in {CIFAR10_FILES}"
    if not torch.cuda.is_available():
        missing["gpu"] = "there is no GPU"
    for item in items:
        for marker in missing.keys() & item.keywords:
            item.add_marker(pytest.mark.skip(reason=missing[marker]))


@pytest.fixture(scope="session", autouse=True)
def hydra() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., RunDir]:
    """The run folder of a command line, below this test's own folder."""
    return lambda *overrides: train.find_run_dir(compose_run(f"output_dir={tmp_path}/runs", *overrides))


class Killed(BaseException):
    """In place of a signal, where a run is stopped in this process."""


@pytest.fixture
def tiny(find: Callable[..., RunDir]) -> Callable[..., RunDir]:
    """Trains `TINY` with further overrides in this process, and returns its folder."""

    def run(*overrides: str) -> RunDir:
        folder = find(*TINY, "trainer.precision=32-true", *overrides)
        train.run(folder)
        return folder

    return run


@pytest.fixture
def tiny_until(tiny: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains as `tiny` does, and is killed after so many iterations."""

    def run(iterations: int, *overrides: str) -> None:
        def stop(self: Record, trainer: object, *_: object) -> None:
            if trainer.global_step == iterations:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Record, "on_train_batch_start", stop)
            tiny(*overrides)

    return run


@pytest.fixture
def wandb_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of W&B who asked for nothing to be sent; see `fake_wandb_server.environment`."""
    from fake_wandb_server import environment

    import wandb

    from src.training.callbacks import wandb as callback

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    callback._answers.cache_clear()
    yield
    wandb.teardown()  # with what it took from the environment


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "FakeServer":
    """A W&B server, to which that user's runs go."""
    from fake_wandb_server import FakeServer

    with FakeServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_MODE", "online")
        yield server
