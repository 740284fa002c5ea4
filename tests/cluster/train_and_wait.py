"""`python train_and_wait.py DIRECTORY OVERRIDE...`: train, and wait for signals.

So a test interrupts a run at fixed iterations, however fast the machine is.
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAIT_AT = (6, 24)

sys.path.insert(0, str(ROOT))

from hydra import initialize_config_dir  # noqa: E402
from pytorch_lightning import Callback, Trainer  # noqa: E402

from src import train  # noqa: E402
from src.cli import run_entry_point  # noqa: E402
from src.config import CONF, compose_config, find_run_dir  # noqa: E402
from src.training.callbacks.preemption import Preemption  # noqa: E402


class WaitForSignal(Callback):
    """Make rank 0 touch a file at each iteration of `WAIT_AT`, and wait for a signal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.is_global_zero and trainer.global_step in WAIT_AT:
            (self.directory / f"waits-at-{trainer.global_step}").touch()
            (preemption,) = (c for c in trainer.callbacks if isinstance(c, Preemption))
            while not preemption.received_signal:
                time.sleep(0.02)


def main() -> None:
    directory, *overrides = sys.argv[1:]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run_dir = find_run_dir(compose_config(*overrides))
    train.run(run_dir, [WaitForSignal(Path(directory))])


if __name__ == "__main__":
    run_entry_point(main)
