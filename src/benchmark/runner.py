"""How a value is measured: each task in its own process, in rounds of all tasks.

The speed of a shared machine drifts over minutes. Within one round it hardly does, so ratios are
taken within a round, and the median over the rounds is reported.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from statistics import median
from typing import Any

from hydra import initialize_config_dir

from src.config import CONF
from src.runs.environment import silence_lightning
from src.tables import Row
from src.training.precision import forbid_tf32

COLUMNS = "measure,net,subject,precision,value,unit,src.train / this,repeats".split(",")
# A `functools.partial` of a function of this package: it is sent to another process.
Task = Callable[[], Any]
# Net, subject (the implementation or setting that is measured), precision.
Case = tuple[str, str, str]


def run_rounds(tasks: dict[Any, Task], repeats: int) -> dict[Any, list[Any]]:
    """Run all tasks one after the other, `repeats` times over, each in a fresh process.

    Returns:
        For each key of `tasks`, one result per round.
    """
    results: dict[Any, list[Any]] = {key: [] for key in tasks}
    for _ in range(repeats):
        for key, task in tasks.items():
            # spawn: a forked process cannot use CUDA, and its peak memory includes the parent's.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                results[key].append(process.submit(run_task, task).result())
    return results


def run_task(task: Task) -> Any:
    """Run a task without its output, as a function of its own process."""
    silence_lightning()
    # By default cuDNN computes fp32 convolutions in TF32, which keeps 10 of the 23 bits of a
    # fraction. A row at 32-true must be fp32, in every way of training.
    forbid_tf32("32-true")
    hydra = initialize_config_dir(str(CONF), version_base="1.3")
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null), hydra:
        return task()


def make_rows(
    measure: str,
    values: dict[Case, list[float]],
    unit: str,
    reference_precision: str | None = None,
) -> list[Row]:
    """Return one result row per case.

    Args:
        measure: name for the column of that name.
        values: for each case, one value per round.
        unit: unit of the values; speeds, in images/s, are compared with that of `src.train`.
        reference_precision: precision of that `src.train`; by default the precision of the case.
    """
    rows = []
    for (net, subject, precision), own in values.items():
        ratio: float | str = ""
        if unit == "images/s":
            reference = values[net, "src.train", reference_precision or precision]
            # The median of the ratios, not the ratio of the medians: see the module's docstring.
            ratio = round(median(a / b for a, b in zip(reference, own, strict=True)), 3)
        row = (measure, net, subject, precision, round(median(own), 3), unit, ratio, len(own))
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def scaled_iterations(iterations: int, net: str) -> int:
    """Return how many iterations of `net` take about as long as `iterations` of resnet20."""
    depth = int(re.sub(r"\D", "", net))
    return max(4, round(iterations * 20 / depth))
