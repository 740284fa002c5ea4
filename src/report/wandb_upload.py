"""Send finished runs to Weights & Biases (W&B), with what compares them, each to its project."""

import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path

import wandb

from src.report.grouping import group_by
from src.report.reading import read_runs
from src.report.results import Run, classifies
from src.report.wandb_study import save_study
from src.report.wandb_workspace import save_workspace
from src.runs.run_dir import RunDir
from src.runs.wandb_identity import WandbIdentity
from src.training.callbacks.wandb import send_finished_run
from src.training.wandb_connection import choose_mode, default_entity, first_line

RUNS_PER_PAGE = 500  # of the answer to which runs are there


def send_to_wandb(
    runs: Sequence[Run], project: str | None = None, entity: str | None = None
) -> None:
    """Send the finished runs that W&B lacks; in each project save what compares its runs.

    Args:
        runs: Runs in any state.
        project: In place of the projects in the run directories.
        entity: In place of the entities in the run directories.
    """
    finished = [(run, RunDir(run.path, run.config)) for run in runs if run.finished]
    if not finished:
        return
    mode, reason = choose_mode()
    if mode != "online":
        names = {"--project": project, "--entity": entity}
        options = [f"{option}={name}" for option, name in names.items() if name]
        places = sorted({str(run.path.parent) for run, _ in finished})
        print(
            f"W&B is {mode} ({reason}); once it is online, python -m src.report --wandb "
            f"{shlex.join([*options, *places])} sends the runs and saves what compares them"
        )
        return
    try:
        owner = cache(default_entity)  # a request to the server, the same for all runs
        by_place = group_by(finished, lambda pair: _place(pair[1], project, entity, owner))
        for place, members in by_place.items():
            _send_project(place, members)
    except Exception as error:
        sys.exit(f"W&B did not accept the report: {first_line(error)}")


def send_sweep(run_dirs: Sequence[RunDir]) -> None:
    """Send what W&B lacks of a sweep, and save what compares the runs of its projects.

    Those are also the earlier ones in the sweep's output directory that W&B knows.

    Args:
        run_dirs: The runs of the sweep, in any state.
    """
    for run_dir in run_dirs:
        if run_dir.summary:  # by now, or before and with another logger
            WandbIdentity.of(run_dir).write(run_dir)
    projects = {WandbIdentity.of(run_dir).project for run_dir in run_dirs}
    runs, _ = read_runs({Path(run_dir.config["output_dir"]) for run_dir in run_dirs})
    try:
        send_to_wandb(
            [
                run
                for run in runs
                if (run.path / "wandb.json").exists()
                and WandbIdentity.of(RunDir(run.path, run.config)).project in projects
            ]
        )
    except SystemExit as error:  # a failure of W&B is not a failure of the sweep
        print(error)


def _place(
    run_dir: RunDir, project: str | None, entity: str | None, owner: Callable[[], str]
) -> tuple[str, str]:
    """Return the project and the entity of a run, by default that of `owner`."""
    identity = WandbIdentity.of(run_dir, project, entity)
    return identity.project, identity.entity or owner()


def _send_project(place: tuple[str, str], members: Sequence[tuple[Run, RunDir]]) -> None:
    project, entity = place
    create_project(project, entity)
    run_dirs = [run_dir for _, run_dir in members]
    complete = complete_runs(project, entity, run_dirs)
    if complete:
        print(f"{len(complete)} of {len(run_dirs)} runs are complete in {entity}/{project}")
    for run_dir in run_dirs:
        if run_dir.path not in complete:
            send_finished_run(run_dir, project, entity)
    runs = [run for run, _ in members if classifies(run)]
    if not runs:
        return  # what compares runs is about errors by depth
    study, report = save_study(project, entity, runs)
    print(f"the workspace is at {save_workspace(project, entity, runs)}")
    print(f"the study is at {study}")
    print(f"the report is at {report}")


def create_project(project: str, entity: str) -> None:
    """Create a project, unless it exists: reports and questions about runs need one."""
    api = wandb.Api()
    if all(existing.name != project for existing in api.projects(entity)):
        api.create_project(project, entity)


def complete_runs(project: str, entity: str, run_dirs: Sequence[RunDir]) -> Collection[object]:
    """Return the paths of the finished runs whose rows and results W&B has, by one question."""
    ids = {
        WandbIdentity.of(run_dir, project, entity).id: run_dir
        for run_dir in run_dirs
        if (run_dir.path / "wandb.json").exists()
    }
    if not ids:
        return set()
    # Not lazily: that would ask again for each run's summary.
    found = wandb.Api().runs(
        f"{entity}/{project}", {"name": {"$in": list(ids)}}, per_page=RUNS_PER_PAGE, lazy=False
    )
    there = {run.id: run for run in found}
    return {
        run_dir.path
        for id, run_dir in ids.items()
        if id in there and _is_complete(there[id], run_dir)
    }


def _is_complete(run: "wandb.apis.public.Run", run_dir: RunDir) -> bool:
    results, sent = run_dir.summary or {}, run.summary_metrics
    compared = ("train_error", "test_error", "test_ap", "test_iou", "test_localization_error")
    same = all(sent.get(key) == results.get(key) for key in compared)
    return run.state == "finished" and sent.get("iteration") == run_dir.last_iteration and same
