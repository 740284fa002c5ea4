"""How a measurement is taken: in a process to itself, in turns with those that it is compared with.

A value is the median over the turns, and a ratio the median of the ratios within a turn, as the speed of a shared
machine drifts.
"""

import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

from hydra import initialize_config_dir

from src.cli import CONF
from src.tables import Row
from src.training.precision import resolve_precision

Task = tuple[Callable[..., float], tuple[Any, ...]]
NATIVE = resolve_precision("auto", "auto")
PRECISIONS = sorted({NATIVE, "32-true"}, reverse=True)


def in_turns(tasks: dict[Any, Task], repeats: int) -> dict[Any, list[float]]:
    """Runs each task `repeats` times, one after the other in turn, each in a fresh process."""
    values: dict[Any, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, (function, arguments) in tasks.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                values[name].append(process.submit(in_process, function, arguments).result())
    return values


def in_process(function: Callable[..., float], arguments: tuple[Any, ...]) -> float:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return function(*arguments)


def rows(
    measure: str, values: dict[Any, list[float]], unit: str, ours_is: Callable[[Any], Any] | None = None
) -> list[Row]:
    """A row for each (net, subject, precision); `ours_is` names the measurement that each is compared with."""
    result = []
    for name, own in values.items():
        ratio = ""
        if ours_is and ours_is(name) in values:
            ratio = round(median(a / b for a, b in zip(values[ours_is(name)], own, strict=True)), 3)
        net, subject, precision = name
        result.append(
            {"measure": measure, "net": net, "subject": subject, "precision": precision, "value": round(median(own), 3)}
            | {"unit": unit, "src.train / this": ratio, "repeats": len(own)}
        )
    return result


def for_net(iterations: int, net: str) -> int:
    """As many iterations of this net as take the time of `iterations` of resnet20."""
    return max(4, round(iterations * 20 / int(re.sub(r"\D", "", net))))
