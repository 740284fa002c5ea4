"""How a value is measured: each task in its own process, in rounds of all tasks.

The speed of a shared machine drifts over minutes. Within one round it hardly does, so ratios are
taken within a round, and the median over the rounds is reported.
"""

import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from hydra import initialize_config_dir

from src.config import CONF
from src.tables import Row

COLUMNS = "measure,net,subject,precision,value,unit,src.train / this,repeats".split(",")
# A function of this package with its arguments; both must be picklable.
Task = tuple[Callable[..., Any], tuple[Any, ...]]
# Net, subject (the implementation or setting that is measured), precision.
Case = tuple[str, str, str]


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        iterations: timed iterations of resnet20; other nets get fewer, see `scaled_iterations`.
        repeats: rounds.
        nets: names of CIFAR-10 nets.
    """

    iterations: int
    repeats: int
    nets: list[str]


def run_rounds(tasks: dict[Any, Task], repeats: int) -> dict[Any, list[Any]]:
    """Run all tasks one after the other, `repeats` times over, each in a fresh process.

    Returns:
        For each key of `tasks`, one result per round.
    """
    results: dict[Any, list[Any]] = {key: [] for key in tasks}
    for _ in range(repeats):
        for key, (function, arguments) in tasks.items():
            # spawn: a forked process cannot use CUDA, and its peak memory includes the parent's.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                results[key].append(process.submit(_run_task, function, arguments).result())
    return results


def _run_task(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return function(*arguments)


def make_rows(
    measure: str,
    values: dict[Case, list[float]],
    unit: str,
    reference: Callable[[Case], Case] | None = None,
) -> list[Row]:
    """Return one result row per case.

    Args:
        measure: name for the column of that name.
        values: for each case, one value per round.
        unit: unit of the values.
        reference: the case of `src.train` that a case is compared with; None for no comparison.
    """
    rows = []
    for case, own in values.items():
        ratio: float | str = ""
        if reference:
            # The median of the ratios, not the ratio of the medians: see the module's docstring.
            ratios = [a / b for a, b in zip(values[reference(case)], own, strict=True)]
            ratio = round(median(ratios), 3)
        row = (measure, *case, round(median(own), 3), unit, ratio, len(own))
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def scaled_iterations(iterations: int, net: str) -> int:
    """Return how many iterations of `net` take about as long as `iterations` of resnet20."""
    depth = int(re.sub(r"\D", "", net))
    return max(4, round(iterations * 20 / depth))
