"""What is drawn of runs, on the page and in the W&B workspace alike."""

from typing import NamedTuple


class Panel(NamedTuple):
    """One chart: a column of metrics.csv over the iterations, or a key of summary.json over the depth."""

    title: str
    value: str
    over: str  # iteration or depth


PANELS = (
    Panel("training error, %", "train/error", "iteration"),
    Panel("test error, %", "test/error", "iteration"),
    Panel("validation error, %", "val/error", "iteration"),
    Panel("training loss", "train/loss", "iteration"),
    Panel("learning rate", "lr", "iteration"),
    Panel("training error by depth, %", "train_error", "depth"),
    Panel("test error by depth, %", "test_error", "depth"),
    Panel("throughput, images/s", "images_per_second", "depth"),
)
