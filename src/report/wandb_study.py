"""Save in Weights & Biases (W&B) what belongs to no single run: a run of type `study`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import wandb
from wandb.plot import CustomChart

from src.report.comparison import DEPTH
from src.report.grouping import group_by, group_seeds
from src.report.labels import join
from src.report.report_dir import PAGE, write_report
from src.report.results import BY_DEPTH, Run, group_runs
from src.report.results_table import results_lines
from src.report.wandb_report import FIGURES, STUDY, make_report, save_report
from src.training.wandb_init import quiet_settings

REPORT = "report"  # key of the study's summary: the address of the project's report


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


def depth_charts(runs: Sequence[Run]) -> dict[str, CustomChart]:
    """Draw what the page draws by depth, for each key of the study's history.

    The lines are drawn here, because W&B joins no points of different runs by lines.
    """
    charts = {}
    for key, title in BY_DEPTH.items():
        lines = lines_by_depth(runs, key)
        xs, ys = zip(*(zip(*points, strict=True) for points in lines.values()), strict=True)
        charts[f"depth/{key}"] = wandb.plot.line_series(
            xs, ys, keys=list(lines), title=title, xname="layers", split_table=True
        )
    return charts


def results_tables(runs: Sequence[Run]) -> dict[str, wandb.Table]:
    """Return the page's table of each data set, for each key of the study's history."""
    tables = {}
    for data, members in group_by(runs, lambda run: run.row["data"]).items():
        lines = results_lines(group_seeds([row for run in members for row in run.evaluations]))
        tables[f"results/{data}"] = wandb.Table(
            columns=list(lines[0]), data=[list(line.values()) for line in lines]
        )
    return tables


def save_study(project: str, entity: str, runs: Sequence[Run]) -> tuple[str, str]:
    """Save the study and the report of a project's finished runs, in place of the previous ones.

    Returns:
        The addresses of the study and of the report.
    """
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
        out = Path(directory) / "report"
        write_report(runs, [], out)
        charts = depth_charts(runs)
        figures = {f"{FIGURES}/{path.stem}": wandb.Image(path) for path in out.glob("*.png")}
        # As it is: W&B would add a style sheet of its own.
        page = wandb.Html(out / PAGE, inject=False)
        run.log({**charts, **results_tables(runs), **figures, "page": page})
        artifact = wandb.Artifact("report", type="report")
        artifact.add_dir(str(out))
        run.log_artifact(artifact)

        # There, not in a file of this machine: a colleague updates the same report.
        report = make_report(project, entity, runs, charts)
        run.summary[REPORT] = save_report(report, run.summary.get(REPORT))
        return str(run.url), run.summary[REPORT]
