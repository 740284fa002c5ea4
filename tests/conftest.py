"""Helpers of the tests: composing configs as the command line does, and running them in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir

from src import train
from src.benchmark.loops import compose_run
from src.command_line import CONF
from src.run import RunFolder

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
def find(tmp_path: Path) -> Callable[..., RunFolder]:
    """The run folder of a command line, below this test's own folder."""
    return lambda *overrides: train.find_folder(compose_run(f"runs={tmp_path}/runs", *overrides))


@pytest.fixture
def tiny(find: Callable[..., RunFolder]) -> Callable[..., RunFolder]:
    """Trains `TINY` with further overrides in this process, and returns its folder."""

    def run(*overrides: str) -> RunFolder:
        folder = find(*TINY, "trainer.precision=32-true", *overrides)
        train.run(folder)
        return folder

    return run
