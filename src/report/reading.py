"""Read run directories, finished or not, into `Run` records."""

import csv
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.report.comparison import CENTER, SEED, WAY, comparison_key, departures
from src.report.grouping import group_by
from src.report.results import BY_DEPTH, FIRST_FAMILIES, STATES, Metrics, Run
from src.runs.config_files import task_name
from src.runs.naming import family
from src.runs.run_dir import RunDir
from src.tables import Row

Skipped = list[tuple[Path, str]]

PROTOCOLS = (CENTER, "10crop", "dense", "multiscale")
PROTOCOL_FILES = ("scales*", "refine*")  # such as scales256-384-512 and refine+multiscale
# Numbers of summary.json that the results of a task cannot do without.
REQUIRED = {
    "classification": ("macs", *BY_DEPTH),
    "detection": ("test_ap", "test_ap50", "images_per_second"),
    "segmentation": ("test_iou", "test_accuracy", "images_per_second"),
    "localization": ("test_localization_error", "images_per_second"),
    "rcnn": ("test_localization_error", "images_per_second"),
}


def read_runs(places: Iterable[Path]) -> tuple[list[Run], Skipped]:
    """Read all runs in and below some directories.

    Args:
        places: Run directories, or directories that contain some.

    Returns:
        The runs by data set, then plain nets before residual ones before others, then by depth;
        and what was skipped, with the reason. Of copies of one run the most complete one counts.
    """
    paths = {
        config.parent
        for place in places
        for config in Path(place).rglob("config.yaml")
        # W&B keeps a config.yaml of its own below a run directory.
        if "wandb" not in config.relative_to(place).parts
    }
    runs: list[Run] = []
    skipped: Skipped = []
    for path in sorted(paths):
        try:
            runs.append(_read_run(path, skipped))
        except Exception as error:  # one broken directory must not hide the others
            reason = _one_line(f"{type(error).__name__}: {error}")
            skipped.append((path, f"cannot be read: {reason}"))

    # Copies have equal configs, whatever their directories are called: a run may have been copied
    # from another machine after it was finished there.
    unique: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: STATES.index(run.state)):
        first = unique.setdefault(comparison_key(run.config, ignore=""), run)
        if first is not run:
            skipped.append((run.path, f"is the same run as {first.path}"))
    return sorted(unique.values(), key=_order), skipped


def _order(run: Run) -> tuple[Any, ...]:
    name = run.row["family"]
    rank = [*FIRST_FAMILIES, name].index(name)  # any other family comes after both
    return run.row["data"], rank, name, run.row["depth"], run.row["run"]


def _read_run(path: Path, skipped: Skipped) -> Run:
    run_dir = RunDir.open(path)
    summary = run_dir.summary
    config = _as_on_one_device(run_dir.config, (summary or {}).get("devices", 1))
    metrics = _read_numbers(run_dir.metrics, skipped)
    layer_rows = _read_numbers(run_dir.layers, skipped)
    row = _config_row(path.name, config)
    if summary is not None:
        # The config is what runs are compared by, but only the net itself knows its depth.
        row |= _summary_row(path, summary) | row | {"depth": summary.get("depth") or 0}
        row["batch_norm_images"] = _batch_norm_images(config)
    row["config"] = comparison_key(config, ignore=SEED)
    row["way"] = comparison_key(config, ignore=WAY)
    row["departures"] = departures(config, row.get("train_images"))
    if config["data"].get("scales"):  # the VGG paper has a result for each
        row["scales"] = "-".join(map(str, config["data"]["scales"]))

    first_layers = [layer for layer in layer_rows if layer["iteration"] == 1]
    layers = _last_evaluation(layer_rows)
    run = Run(path, config, "not started", row, metrics, layers, first_layers)
    if summary is not None:
        run.state = "finished"
        others = sorted({f.stem for name in PROTOCOL_FILES for f in path.glob(f"{name}.json")})
        # A file of `center` has what a classifier adds to the summary of a localizer.
        tests = filter(None, map(run_dir.evaluation, [*PROTOCOLS, *others]))
        by_protocol = {test["protocol"]: row | _evaluation_row(test) for test in tests}
        run.evaluations = [*({CENTER: row} | by_protocol).values()]
    elif run_dir.error.exists():  # a run that is resumed removes it
        # Its text may come from anywhere, so it need not be valid UTF-8.
        first_line = run_dir.error.read_text(errors="replace").strip().partition("\n")[0]
        run.state = "failed"
        run.error = _one_line(first_line) or "no reason given"
    elif metrics or (path / "lock").exists():
        run.state = "unfinished"
    return run


def _config_row(name: str, config: dict[str, Any]) -> Row:
    """Return what a config says of its run, under the keys of summary.json."""
    model, choices = config["model"], config["choices"]
    context = config["recipe"].get("detector", {}).get("context", False)
    # 6n+2 layers (Sec. 4.2); bottleneck blocks have three layers in place of two. 0: unknown.
    layers_per_n = 9 if model["_target_"].endswith("_bottleneck") else 6
    return {
        "run": name,
        "family": family(config),
        "model": str(choices["model"]),
        "n": model.get("n"),
        "depth": int(model.get("depth", layers_per_n * model["n"] + 2 if "n" in model else 0)),
        "shortcut": model.get("shortcut"),
        "data": str(choices["data"]),
        "task": task_name(choices),
        "seed": int(config["seed"]),
        "val_images": int(config["data"].get("val_images", 0)),
        "iterations": int(config["recipe"]["iterations"]),
        "protocol": CENTER,
        **({"context": True} if context and choices.get("task") == "detection" else {}),
    }


def _as_on_one_device(config: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Return the config of a run on one device whose batch norm sees as many images.

    Runs are compared by their configs, which do not say how many devices there were.
    """
    recipe = config["recipe"]
    has_own_number = config["trainer"]["sync_batchnorm"] or recipe.get("batch_norm_images")
    if world_size == 1 or has_own_number or not _has_batch_norm(config):
        return config
    return config | {"recipe": recipe | {"batch_norm_images": recipe["batch_size"] // world_size}}


def _has_batch_norm(config: dict[str, Any]) -> bool:
    model = config["model"]
    # VGG nets have a key of their own.
    return model.get("batch_norm", True) and model.get("norm", "batch") == "batch"


def _batch_norm_images(config: dict[str, Any]) -> str:
    """Return the number of images that one batch norm sees, and whether it is synchronized."""
    recipe = config["recipe"]
    if not _has_batch_norm(config):
        return "-"
    if config["trainer"]["sync_batchnorm"]:
        return f"{recipe['batch_size']} (synchronized)"
    return str(recipe.get("batch_norm_images") or recipe["batch_size"])


def _summary_row(path: Path, summary: Row) -> Row:
    # Without these numbers, tables and figures could not be made of it.
    needed = ("parameters", *REQUIRED[summary.get("task", "classification")])
    missing = [key for key in needed if not isinstance(summary.get(key), int | float)]
    if missing:
        raise ValueError(f"summary.json has no number for {', '.join(missing)}")
    # summary.json is written last, and has no date of its own.
    finished = datetime.fromtimestamp((path / "summary.json").stat().st_mtime, UTC)
    # A text, as a cell of a CSV file holds no dict.
    versions = " ".join(f"{name}={version}" for name, version in summary["versions"].items())
    return _flat_classes(summary) | {"versions": versions, "date": finished.date().isoformat()}


def _evaluation_row(test: Row) -> Row:
    """Return what a protocol changes in the row of a run, which keeps its training and speed."""
    return _flat_classes({k: v for k, v in test.items() if k == "protocol" or k[:5] == "test_"})


def _flat_classes(results: Row) -> Row:
    """Return results with a key such as `ap of cat` for each class: a cell holds no dict."""
    flat: Row = {}
    for key, value in results.items():
        if key.endswith("_per_class"):
            measure = key.removeprefix("test_").removesuffix("_per_class")
            flat |= {f"{measure} of {name}": x for name, x in value.items()}
        else:
            flat[key] = value
    return flat


def _read_numbers(path: Path, skipped: Skipped) -> Metrics:
    """Return the numbers in the rows of a CSV file, without a last row that is incomplete."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):  # the run is writing it, or was killed then
        lines.pop()
        skipped.append((path, "has an incomplete last row, which is ignored"))
    rows = [
        {column: float(text) for column, text in row.items() if text and column != "layer"}
        for row in csv.DictReader(lines)
    ]
    if any("iteration" not in row for row in rows):
        raise ValueError(f"{path.name} has a row without an iteration")
    return rows


def _last_evaluation(rows: Metrics) -> Metrics:
    """Return the last rows of one iteration that are as many as those of the first."""
    evaluations = list(group_by(rows, lambda row: row["iteration"]).values())
    # A run that is being written or was killed leaves fewer rows than there are layers.
    complete = [rows for rows in evaluations if len(rows) == len(evaluations[0])]
    return complete[-1] if complete else []


def _one_line(text: str) -> str:
    """Make a text safe for a terminal: one line, no control characters, limited length."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(line.split())[:300]
