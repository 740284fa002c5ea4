"""`Run` records, finished or not, and which of them belong together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.report.comparison import comparison_key
from src.report.grouping import group_by
from src.report.labels import variant_labels
from src.tables import Row

Curve = list[tuple[float, float]]  # (iteration, value)
Metrics = list[dict[str, float]]

# From the most complete to the least: of copies of a run the first state wins.
STATES = ("finished", "unfinished", "failed", "not started")
FIRST_FAMILIES = ("plain", "residual")  # in the order of Fig. 6

# What the page and the W&B workspace draw: columns of metrics.csv over the iterations, and keys of
# summary.json over the depth.
CURVES = {
    "train/error": "training error (%)",
    "test/error": "test error (%)",
    "val/error": "validation error (%)",
    "train/loss": "training loss",
    "lr": "learning rate",
}
BY_DEPTH = {
    "train_error": "training error by depth (%)",
    "test_error": "test error by depth (%)",
    "images_per_second": "throughput (images/s)",
}


@dataclass
class Run:
    """One run as its directory shows it.

    Attributes:
        path: The run directory.
        config: Its nested config.
        state: One of `STATES`.
        row: What the config says and, of a finished run, its results by the `center` protocol.
        metrics: The rows of metrics.csv, each with the numbers that it has.
        layers: The rows of layers.csv of the last complete evaluation, in layer order.
        first_layers: Those of the first iteration; none if an older version began the run.
        error: The first line of error.txt of a failed run.
        evaluations: For each protocol that a finished run was tested by, `row` with its errors.
    """

    path: Path
    config: dict[str, Any]
    state: str
    row: Row
    metrics: Metrics
    layers: Metrics
    first_layers: Metrics
    error: str = ""
    evaluations: Sequence[Row] = ()

    @property
    def finished(self) -> bool:
        """Whether the run has results."""
        return self.state == "finished"

    @property
    def held_out(self) -> str:
        """The split that was evaluated during training: `val` or `test`."""
        return "val" if self.row["val_images"] else "test"

    @property
    def net(self) -> str:
        """Family and depth: `plain-20`; the family alone if the depth is unknown."""
        depth = self.row["depth"]
        return f"{self.row['family']}-{depth}" if depth else self.row["family"]

    def curve(self, column: str) -> Curve:
        """Return (iteration, value) wherever a column of metrics.csv has a finite value."""
        # Cells are empty at the iterations that are not evaluated; a loss may have diverged.
        rows = [row for row in self.metrics if math.isfinite(row.get(column, math.nan))]
        return [(row["iteration"], row[column]) for row in rows]

    @property
    def held_out_curve(self) -> Curve:
        """The errors on the split that was evaluated during training."""
        return self.curve(f"{self.held_out}/error")


def classifies(run: Run) -> bool:
    """Return whether a run is one of classification."""
    return run.row["task"] == "classification"


def group_runs(runs: Iterable[Run], ignore: str, keys: str = ".*") -> list[tuple[str, list[Run]]]:
    """Group runs that differ in nothing but the keys to ignore.

    Args:
        runs: The runs.
        ignore: A regular expression for flat keys, such as `DEPTH`.
        keys: A regular expression for the flat keys that distinguish the groups in their labels.

    Returns:
        A label and the runs of each group.
    """
    groups = list(group_by(runs, lambda run: comparison_key(run.config, ignore)).values())
    first = [members[0] for members in groups]
    families = [run.row["family"] for run in first]
    labels = variant_labels([run.config for run in first], families, keys)
    return list(zip(labels, groups, strict=True))
