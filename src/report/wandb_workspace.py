"""Runs side by side in Weights & Biases (W&B): finished ones sent there, and a workspace with the page's panels."""

import sys
from collections.abc import Iterable
from contextlib import suppress

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces.internal import get_view_dict

from src.report.panels import PANELS, Panel
from src.runs.run_dir import RunDir
from src.training.callbacks.wandb import dashboard, in_a_line, mode

NAME = "plain against residual"
VIEW = "plainvsres0"  # in place of the random name that a view has in W&B: it is replaced, and not one more
GROUPS = (
    "data",
    "family",
    "depth",
    "shortcut",
)  # keys of src.training.callbacks.wandb.flat_config; what is left is the seed


def send(runs: Iterable[tuple[RunDir, str]], project: str, entity: str | None) -> None:
    """Brings W&B up to finished runs, each given with its family; rows that W&B has are not sent again."""
    for folder, family in runs:
        with dashboard(folder, family, folder.summary["depth"], project, entity):
            pass  # there is nothing to follow; all that is in the folder is shown


def workspace(project: str, entity: str) -> ws.Workspace:
    """The workspace of `PANELS`, the mean over seeds in each; it is not in W&B yet."""
    sections = {"over iterations": "iteration", "over depth": "depth"}
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, is_open=True, panels=[_draw(panel) for panel in PANELS if panel.over == over])
            for name, over in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis="iteration", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(key) for key in GROUPS]),
    )


def _draw(panel: Panel) -> wr.LinePlot | wr.ScatterPlot:
    if panel.over == "iteration":
        return wr.LinePlot(title=panel.title, x="iteration", y=[panel.value])
    return wr.ScatterPlot(title=panel.title, x=wr.Config("depth"), y=wr.SummaryMetric(panel.value))


def save(project: str, entity: str | None) -> None:
    """Puts the workspace into W&B, over the one of before; offline it says what to do, and does nothing."""
    how, why = mode()
    if how != "online":
        print(f"W&B is {how} ({why}): the workspace is made by python -m src.report --wandb once it is online")
        return
    try:
        # As for a run: the configured one, then WANDB_ENTITY, then the user's own.
        view = workspace(project, entity or wandb.setup().settings.entity or wandb.Api().default_entity)
        view._internal_name = f"nw-{VIEW}-v"
        with suppress(ValueError):  # there is none yet
            view._internal_id = get_view_dict(view.entity, project, VIEW)["id"]
        view.save()
    except Exception as error:
        sys.exit(f"W&B did not take the workspace: {in_a_line(error)}")
    print(f"the workspace is at {view.url}")
