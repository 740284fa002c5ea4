"""A workspace in Weights & Biases (W&B) that compares the training runs of a project."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces.internal import get_view_dict

from src.report.figures import error_limit, styles
from src.report.grouping import group_by
from src.report.results import CURVES, Run
from src.runs.naming import curve_name
from src.runs.run_dir import RunDir

NAME = "plain against residual"
# W&B gives each view a random name; with a fixed one, saving again replaces the view.
VIEW = "plainvsres0"
# Keys of src.training.wandb_init.flat_config; the runs of a group differ in the seed.
GROUP_BY = ("data", "curve")
# A run has one of the two columns: a panel for each would be empty for most projects.
HELD_OUT = ["test/error", "val/error"]
PANELS = {
    CURVES["train/error"]: ["train/error"],
    "test or validation error (%)": HELD_OUT,
    CURVES["train/loss"]: ["train/loss"],
    CURVES["lr"]: ["lr"],
}
ERROR_PANELS = [title for title, columns in PANELS.items() if columns[0].endswith("/error")]


def curve_panels(runs: Sequence[Run], titles: Collection[str] = PANELS) -> list[Any]:
    """Make panels of the curves, averaged over seeds.

    Args:
        runs: Runs in any state, which give the range of the errors.
        titles: Of the panels; by default of all.
    """
    return [
        wr.LinePlot(
            title=title,
            x="iteration",
            y=list[Any](PANELS[title]),
            # One range for all error panels, as in Fig. 6; the first evaluations are above it.
            range_y=(0, error_limit(runs)) if title in ERROR_PANELS else (None, None),
            # Smoothed curves would fall later than the learning rate.
            smoothing_type="none",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for title in titles
    ]


def make_workspace(project: str, entity: str, runs: Sequence[Run]) -> ws.Workspace:
    """Make, without sending it, the workspace of the page's curves."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name="over iterations", is_open=True, panels=curve_panels(runs))],
        settings=ws.WorkspaceSettings(x_axis="iteration", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("JobType") == "train"],  # the study has no curves
            groupby=[ws.Config(key) for key in GROUP_BY],
            group_colors=group_colors(runs),
        ),
    )


def group_colors(runs: Sequence[Run]) -> dict[object, object]:
    """Return the color of each group of runs, which is that of the figures and of the page."""
    colors: dict[object, object] = {}  # as wandb-workspaces annotates it
    for data, members in group_by(runs, lambda run: run.row["data"]).items():
        for run, style in zip(members, styles(members), strict=True):
            curve = curve_name(RunDir(run.path, run.config).key)
            colors[ws.GroupPath(data, curve)] = style.color
    return colors


def save_workspace(project: str, entity: str, runs: Sequence[Run]) -> str:
    """Save the workspace in W&B in place of the previous one, and return its address."""
    view = make_workspace(project, entity, runs)
    # The library has no public way to replace a view.
    view._internal_name = f"nw-{VIEW}-v"  # noqa: SLF001
    with suppress(ValueError):  # there is none yet
        view._internal_id = get_view_dict(entity, project, VIEW)["id"]  # noqa: SLF001
    view.save()
    return str(view.url)
