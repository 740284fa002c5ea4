"""The measured points of a loss landscape: which there are, and the files that they are kept in."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from src.runs.atomic_io import atomic_write
from src.runs.csv_rows import append_rows, read_rows, truncate_rows
from src.runs.naming import family
from src.runs.run_dir import RunDir

COLUMNS = ("alpha", "beta", "loss", "error")
Point = tuple[float, float]  # alpha and beta: how far each direction is followed


class Measurement(NamedTuple):
    """The mean loss at a point, and the error in percent."""

    loss: float
    error: float


def steps(count: int, limit: float) -> list[float]:
    """Return `count` equidistant numbers from -limit to limit."""
    # Rounded, because they are compared with what was read from a file. Integers are divided, so
    # that the steps of the plane are exactly every second step of the profile.
    last = count - 1
    return [round(limit * ((2 * i - last) / last), 6) for i in range(count)]


def profile_points(grid: int, limit: float) -> list[Point]:
    """Return the points of the one-dimensional profile, among them those of the plane."""
    return [(alpha, 0.0) for alpha in steps(2 * grid - 1, limit)]


def plane_points(grid: int, limit: float) -> list[Point]:
    """Return the points of the plane, row by row."""
    values = steps(grid, limit)
    return [(alpha, beta) for beta in values for alpha in values]


class LandscapePoints:
    """The points that were measured around one run, in a CSV file.

    A YAML file next to it says what was measured, so that points of other weights or images are
    never mixed. Grid and range may change: a point is the same point in every grid.

    Args:
        run_dir: A finished run.
        settings: The keys of the command line; those of `IDENTITY` are part of the identity.
    """

    IDENTITY = ("split", "images", "seed")

    def __init__(self, run_dir: RunDir, settings: dict[str, Any]) -> None:
        self.name, self.family = run_dir.path.name, family(run_dir.config)
        # Runs of several datasets may have the same name.
        stem = f"{run_dir.config['choices']['data']}-{self.name}"
        directory = Path(settings["output_dir"])
        self.csv, self.about = (directory / f"{stem}{end}" for end in (".csv", ".yaml"))
        with open(run_dir.last_checkpoint, "rb") as file:
            checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
        chosen = {key: settings[key] for key in self.IDENTITY}
        self.identity = {"run": run_dir.key, "checkpoint": checkpoint, **chosen}
        self.measured: dict[Point, Measurement] = {}

    def open(self) -> None:
        """Read the points that an interrupted command has measured, or create the files.

        Raises:
            ValueError: If the points are of another run, other weights or other images.
        """
        # Written before the first point, so points without this file are not ours.
        if not self.about.exists() and not self.csv.exists():
            text = yaml.safe_dump(self.identity, sort_keys=False)
            atomic_write(self.about, lambda file: file.write(text.encode()))
        stored = yaml.safe_load(self.about.read_text()) if self.about.exists() else {}
        different = [key for key in self.identity if stored.get(key) != self.identity[key]]
        if different:
            changes = ", ".join(
                f"{key} was {stored.get(key)}, now {self.identity[key]}" for key in different
            )
            raise ValueError(
                f"{self.csv} holds points with other settings ({changes}): set another output_dir, "
                "or remove that file and the .yaml file next to it"
            )
        if self.csv.exists():
            truncate_rows(self.csv, math.inf)  # removes a row that a kill cut short
        self.measured = {
            (row["alpha"], row["beta"]): Measurement(row["loss"], row["error"])
            for row in read_rows(self.csv)
        }

    def append(self, point: Point, measurement: Measurement) -> None:
        """Add a point, also to the file."""
        self.measured[point] = measurement
        values = (*point, *measurement)
        append_rows(self.csv, COLUMNS, [dict(zip(COLUMNS, values, strict=True))])
