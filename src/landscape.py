"""Draw loss landscapes: `python -m src.landscape RUN RUN ...`; see --help."""

import argparse
import math
import re
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from src.cli import did_you_mean, run_entry_point
from src.evaluation.landscape_points import (
    LandscapePoints,
    Measurement,
    Point,
    plane_points,
    profile_points,
)
from src.runs.atomic_io import writing
from src.runs.config_files import CONF
from src.runs.lock import exclusive_lock
from src.runs.run_dir import RunDir

CONFIG = CONF / "landscape.yaml"
CHOICES = {"split": ("train", "val", "test"), "accelerator": ("auto", "cpu", "cuda")}
MINIMUM = {"grid": 2, "images": 0, "seed": 0, "devices": 1}
HELP = """\
Draws the loss around the final weights of finished runs, all on one scale: a profile along one
random direction (in seconds), then contours and surfaces over the plane of two.

  python -m src.landscape runs/digits/plain56-s0 runs/digits/resnet56-s0 grid=25

The method is that of Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets". Each filter
of a random direction is scaled to the norm of the net's filter. As in the authors' code, batch norm
uses the running statistics of the trained net at every point, and its parameters and all biases
stay as they are. Images are not augmented; the arithmetic is fp32, whatever the training's was.

Each point is saved when it is measured: the same command resumes, and a finished one only draws.
"""


def main() -> None:
    """Parse the command line, measure what is missing, and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m src.landscape",
        description=HELP,
        epilog=f"keys:\n{keys_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="RUN | KEY=VALUE")
    runs, settings = parse(parser.parse_args().words)
    run_dirs = [RunDir.open_finished(run) for run in runs]
    landscapes = [LandscapePoints(run_dir, settings) for run_dir in run_dirs]
    out = Path(settings["output_dir"])
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out):
        for landscape in landscapes:
            landscape.open()
        measure_and_draw(runs, landscapes, settings)


def keys_help() -> str:
    """Return the keys with their defaults and comments, as the command line takes them."""
    keys = CONFIG.read_text().partition("\n")[2]  # the first line is about the file
    return re.sub(r"(?m)^(\w+): ", r"  \1=", keys)


def parse(words: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Split the command line into run directories and settings.

    Raises:
        ValueError: No run, an unknown key, or a value that it cannot have.
    """
    runs = list(dict.fromkeys(Path(word) for word in words if "=" not in word))
    if not runs:
        raise ValueError("there is nothing to draw: pass run directories; --help shows an example")
    settings = yaml.safe_load(CONFIG.read_text())
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            continue
        if key not in settings:
            raise ValueError(f"there is no key {key}{did_you_mean(key, [*settings])}; see --help")
        value, default = yaml.safe_load(text), settings[key]
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        # A root is None by default; to Python, true is an integer.
        if type(value) is not type(default or ""):
            raise ValueError(f"{word} must be like {key}={default}")
        if value not in CHOICES.get(key, [value]):
            raise ValueError(f"{word} is not one of {', '.join(CHOICES[key])}")
        settings[key] = value
    for key, minimum in MINIMUM.items():
        if settings[key] < minimum:
            raise ValueError(f"{key}={settings[key]} must be at least {minimum}")
    if not 0 < settings["range"] < math.inf:
        raise ValueError(f"range={settings['range']} must be above 0 and finite")
    return runs, settings


def measure_and_draw(
    runs: Sequence[Path], landscapes: Sequence[LandscapePoints], settings: dict[str, Any]
) -> None:
    """Measure the missing points of all runs, and draw the profile before the plane is measured."""
    grid, limit = settings["grid"], settings["range"]
    profile, plane = profile_points(grid, limit), plane_points(grid, limit)
    on_profile = set(profile)
    # The profiles of all runs come first: they are drawn long before a plane is complete.
    first, second = (
        [
            (index, point)
            for index, landscape in enumerate(landscapes)
            for point in points
            if point not in landscape.measured
        ]
        for points in (profile, [point for point in plane if point not in on_profile])
    )
    start, total = time.perf_counter(), len(first) + len(second)
    with (
        closing(start_measuring(runs, [*first, *second], settings)) as results,
        tqdm(desc="measuring", total=total, unit=" points", leave=False, disable=None) as bar,
    ):
        for name, items in (("profile", first), ("landscape", second)):
            # The items are the shorter one: no result is taken from the iterator and lost.
            for (index, point), measurement in zip(items, results, strict=False):
                landscapes[index].append(point, measurement)
                bar.update()
            svg = draw(name, landscapes, settings)
            bar.write(f"written: {svg} and .png")
    if total:
        print(f"measured {total:,} points in {time.perf_counter() - start:,.0f} s")


def start_measuring(
    runs: Sequence[Path], items: Sequence[tuple[int, Point]], settings: dict[str, Any]
) -> Generator[Measurement]:
    """Yield the measurement of each item, a point and the index of its run."""
    if not items:
        return
    # Only here, because it imports torch.
    from src.evaluation.loss_plane import PlaneConfig, find_device, measure

    device = find_device(settings["accelerator"], settings["devices"])
    chosen = {key: settings[key] for key in ("split", "images", "seed", "root")}
    configs = [PlaneConfig(run, device=device, **chosen) for run in runs]
    yield from measure([(configs[i], point) for i, point in items], settings["devices"])


def draw(name: str, landscapes: Sequence[LandscapePoints], settings: dict[str, Any]) -> Path:
    """Draw the figure `profile` or `landscape`, and return its SVG file."""
    # Only here, so that mistakes in the command line do not wait for matplotlib.
    from src.report.figures import save_figure
    from src.report.landscape_plots import draw_planes, draw_profile

    draw_figure = draw_profile if name == "profile" else draw_planes
    figure = draw_figure(landscapes, settings["grid"], settings["range"])
    return save_figure(figure, Path(settings["output_dir"]) / name)


if __name__ == "__main__":
    run_entry_point(main)
