"""Show runs in Weights & Biases (W&B): send finished ones, and save a workspace of them."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces.internal import get_view_dict

from src.report.results import BY_DEPTH, CURVES
from src.runs.run_dir import RunDir
from src.training.callbacks.wandb import WandbRun, choose_mode, first_line

NAME = "plain against residual"
# W&B gives each view a random name; with a fixed one, saving again replaces the view.
VIEW = "plainvsres0"
# Keys of src.training.callbacks.wandb.flat_config; the runs of a group differ in the seed.
GROUP_BY = ("data", "family", "depth", "shortcut")


def send_runs(runs: Iterable[RunDir], project: str, entity: str | None) -> None:
    """Send finished runs; rows that W&B has are not sent again."""
    for run_dir in runs:
        summary = run_dir.summary
        assert summary is not None, run_dir.path
        # Opening and closing it sends all that is in the run directory.
        with WandbRun(run_dir, depth=summary["depth"], project=project, entity=entity):
            pass


def make_workspace(project: str, entity: str) -> ws.Workspace:
    """Make, without sending it, the workspace of the page's figures, averaged over seeds."""
    lines: list[Any] = [
        wr.LinePlot(title=title, x="iteration", y=[column]) for column, title in CURVES.items()
    ]
    points: list[Any] = [
        wr.ScatterPlot(title=title, x=wr.Config("depth"), y=wr.SummaryMetric(key))
        for key, title in BY_DEPTH.items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name="over iterations", is_open=True, panels=lines),
            ws.Section(name="over depth", is_open=True, panels=points),
        ],
        settings=ws.WorkspaceSettings(x_axis="iteration", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(key) for key in GROUP_BY]),
    )


def save_workspace(project: str, entity: str | None) -> None:
    """Save the workspace in W&B in place of the previous one; offline, only print how."""
    mode, reason = choose_mode()
    if mode != "online":
        print(
            f"W&B is {mode} ({reason}): run python -m src.report --wandb again to save the "
            "workspace once it is online"
        )
        return
    try:
        # As for a run: the configured entity, then WANDB_ENTITY, then the user's default.
        settings = wandb.setup().settings
        owner = str(entity or settings.entity or wandb.Api().default_entity)
        view = make_workspace(project, owner)
        # The library has no public way to replace a view.
        view._internal_name = f"nw-{VIEW}-v"  # noqa: SLF001
        with suppress(ValueError):  # there is none yet
            view._internal_id = get_view_dict(owner, project, VIEW)["id"]  # noqa: SLF001
        view.save()
    except Exception as error:
        sys.exit(f"W&B did not accept the workspace: {first_line(error)}")
    print(f"the workspace is at {view.url}")
