"""Reads run folders, whole or unfinished, and writes and reads their rows of results as CSV."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from src.report.comparison import SEED, alike, departures, grouped
from src.runs.naming import family
from src.runs.run_dir import RunDir

Row = dict[str, Any]
LeftOut = list[tuple[Path, str]]

STATES = ("finished", "unfinished", "failed", "not started")
PROTOCOLS = ("center", "10crop", "multiscale")
TESTED = ("protocol", "test_error", "test_error_top5")
FIRST = ("plain", "residual")  # of the families, as in Fig. 6
# What each summary must have, in numbers.
NUMBERS = "depth seed val_images iterations parameters macs train_error test_error images_per_second".split()


@dataclass
class Run:
    """A run folder as it stands.

    Attributes:
        row: what the config tells, and once the run is finished its results; its tests are all by `center`.
        tests: for each protocol that the run was tested by, `row` with what that gave; none until it is finished.
        metrics: the rows of metrics.csv, each with the numbers that it has.
        layers: the rows of layers.csv of the last evaluation that is there in full, in layer order.
        why: the first line of error.txt, if the run failed.
    """

    folder: RunDir
    state: str
    row: Row
    metrics: list[dict[str, float]]
    layers: list[dict[str, float]]
    why: str = ""
    tests: Sequence[Row] = ()

    @property
    def held_out(self) -> str:
        """The split that the run was tested on as it went: `val` or `test`."""
        return "val" if self.row["val_images"] else "test"

    def curve(self, column: str) -> list[tuple[float, float]]:
        """(iteration, value) wherever a column of metrics.csv has a value."""
        return [(row["iteration"], row[column]) for row in self.metrics if column in row]


def read_runs(places: Iterable[Path]) -> tuple[list[Run], LeftOut]:
    """The runs in and below some folders, whatever their state, and what was left out of them, with the reason.

    They come by data set, plain nets, then residual ones, then others, by depth. A run that is there twice, such as
    in a copy, counts once.
    """
    paths = {config.parent for place in places for config in Path(place).rglob("config.yaml")}
    paths = sorted(path for path in paths if "wandb" not in path.parts)  # W&B keeps a config.yaml in a run's folder
    runs: list[Run] = []
    left_out: LeftOut = []
    for path in paths:
        try:
            runs.append(_read_run(path, left_out))
        except Exception as error:  # whatever is wrong with one folder, the others are shown
            left_out.append((path, f"cannot be read: {_one_line(f'{type(error).__name__}: {error}')}"))
    runs.sort(key=lambda run: STATES.index(run.state))
    known: dict[str, Run] = {}
    for run in runs:
        first = known.setdefault(alike(run.folder.config, but=""), run)
        if first is not run:
            left_out.append((run.folder.path, f"is the same run as {first.folder.path}"))
    return sorted(known.values(), key=_order), left_out


def _order(run: Run) -> tuple[Any, ...]:
    name = run.row["family"]
    first = [*FIRST, name].index(name)
    return run.row["data"], first, name, run.row["depth"], run.row["run"]


def _read_run(path: Path, left_out: LeftOut) -> Run:
    config = yaml.safe_load((path / "config.yaml").read_text())
    folder = RunDir(path, config)
    metrics = _numbers(folder.metrics, left_out)
    layers = _last_evaluation(_numbers(folder.layers, left_out))
    row, summary = _planned(path.name, config), folder.summary
    if summary is not None:
        missing = [key for key in NUMBERS if not isinstance(summary.get(key), int | float)]
        if missing:
            raise ValueError(f"summary.json has no number for {', '.join(missing)}")
        summary["versions"] = " ".join(f"{name}={version}" for name, version in summary["versions"].items())
        finished = datetime.fromtimestamp((path / "summary.json").stat().st_mtime, UTC)
        row |= {**summary, "date": finished.date().isoformat()}
    row |= {"config": alike(config, but=SEED), "departures": departures(config, row.get("train_images"))}
    if summary is not None:
        tested = filter(None, (folder.tested(protocol) for protocol in PROTOCOLS[1:]))
        tests = [{key: test[key] for key in TESTED} for test in tested]
        return Run(folder, "finished", row, metrics, layers, tests=[row, *(row | test for test in tests)])
    if folder.error.exists():
        why = _one_line(folder.error.read_text(errors="replace").strip().partition("\n")[0]) or "it does not say why"
        return Run(folder, "failed", row, metrics, layers, why)
    started = metrics or (path / "lock").exists()
    return Run(folder, "unfinished" if started else "not started", row, metrics, layers)


def _planned(name: str, config: dict[str, Any]) -> Row:
    """What a config tells of its run, under the names of summary.json."""
    model, choices = config["model"], config["choices"]
    layers_per_n = 9 if model["_target_"].endswith("_bottleneck") else 6  # Sec. 4.2; three layers in a block, not two
    return {
        "run": name,
        "family": family(config),
        "model": str(choices["model"]),
        "n": model.get("n"),
        "depth": int(model["depth"] if "depth" in model else layers_per_n * model["n"] + 2),
        "shortcut": model.get("shortcut"),
        "data": str(choices["data"]),
        "seed": int(config["seed"]),
        "val_images": int(config["data"].get("val_images", 0)),
        "iterations": int(config["recipe"]["iterations"]),
        "protocol": PROTOCOLS[0],
    }


def _numbers(path: Path, left_out: LeftOut) -> list[dict[str, float]]:
    """The rows of a CSV file, each with the numbers that it has, but for a last line that is not whole."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        left_out.append((path, "has a half-written last line, which does not count"))
    rows = [
        {column: float(value) for column, value in line.items() if value and column != "layer"}
        for line in csv.DictReader(lines)
    ]
    if any("iteration" not in row for row in rows):
        raise ValueError(f"{path.name} has a row without its iteration")
    return rows


def _last_evaluation(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The last rows of one iteration that are as many as those of the first."""
    evaluations = list(grouped(rows, lambda row: row["iteration"]).values())
    return next((e for e in reversed(evaluations) if len(e) == len(evaluations[0])), [])


def _one_line(text: str) -> str:
    """A text that does no harm in a terminal: on one line, no control characters, not without end."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(line.split())[:300]


def without_seed(row: Row) -> str:
    """A run folder's name but for the seed: it tells all that is not the default."""
    return re.sub(r"-s\d+$", "", row["run"])


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows may differ in their columns: results of an earlier version have fewer."""
    columns = dict.fromkeys(column for row in rows for column in row)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """Rows as `write_csv` wrote them, numbers as numbers."""

    def value(text: str) -> Any:
        try:
            return float(text) if "." in text else int(text)
        except ValueError:
            return text

    with open(path, newline="") as file:
        return [{key: value(text) for key, text in line.items()} for line in csv.DictReader(file)]
