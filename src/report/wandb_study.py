"""Save in Weights & Biases (W&B) what belongs to no single run: a run of type `study`."""

from collections.abc import Sequence
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import wandb

from src.report.comparison import DEPTH, group_by, join
from src.report.results import BY_DEPTH, Run, group_runs
from src.training.wandb_init import quiet_settings

STUDY = "study"  # type and name of the run


def lines_by_depth(runs: Sequence[Run], key: str) -> dict[str, list[tuple[int, float]]]:
    """Return a line for each family, as in the page: the mean over the seeds at each depth.

    Args:
        runs: Finished runs.
        key: A key of summary.json.

    Returns:
        By label the points (depth, mean), in ascending depth.
    """
    lines = {}
    for data, members in group_by(runs, lambda run: run.row["data"]).items():
        for label, series in group_runs(members, ignore=DEPTH):
            by_depth = group_by(series, lambda run: run.row["depth"])
            points = [(d, mean(run.row[key] for run in seeds)) for d, seeds in by_depth.items()]
            lines[join(f"{data}, {series[0].row['family']}", label)] = sorted(points)
    return lines


def save_study(project: str, entity: str, runs: Sequence[Run]) -> str:
    """Save the study of a project's finished runs, and return its address.

    The lines are drawn here, because W&B joins no points of different runs by lines.
    """
    charts: dict[str, Any] = {}
    for key, title in BY_DEPTH.items():
        lines = lines_by_depth(runs, key)
        xs, ys = zip(*(zip(*points, strict=True) for points in lines.values()), strict=True)
        charts[f"depth/{key}"] = wandb.plot.line_series(
            xs, ys, keys=list(lines), title=title, xname="layers", split_table=True
        )
    # Looked up, not a fixed id: that of a run which was deleted is refused for good.
    earlier = wandb.Api().runs(f"{entity}/{project}", {"jobType": STUDY}, per_page=1)
    with (
        TemporaryDirectory() as directory,
        wandb.init(
            project=project,
            entity=entity,
            id=next((run.id for run in earlier), None),
            name=STUDY,
            job_type=STUDY,
            dir=directory,
            resume="allow",
            reinit="create_new",
            settings=quiet_settings(x_disable_stats=True),
        ) as run,
    ):
        run.log(charts)
        return str(run.url)
