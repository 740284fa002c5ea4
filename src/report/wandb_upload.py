"""Send finished runs to Weights & Biases (W&B), with what compares them, each to its project."""

import sys
from collections.abc import Collection, Sequence

import wandb

from src.report.comparison import group_by
from src.report.results import Run
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
    """Send the finished runs that W&B lacks; in each project save a workspace and a study.

    Args:
        runs: Runs in any state.
        project: In place of the projects in the run directories.
        entity: In place of the entities in the run directories.
    """
    finished = [(run, RunDir(run.path, run.config)) for run in runs if run.finished]
    mode, reason = choose_mode()
    if mode != "online":
        for _, run_dir in finished:
            send_finished_run(run_dir, project, entity)
        print(
            f"W&B is {mode} ({reason}): run python -m src.report --wandb again to save the "
            "workspace once it is online"
        )
        return
    try:
        by_place = group_by(finished, lambda pair: _place(pair[1], project, entity))
        for place, members in by_place.items():
            _send_project(place, members)
    except Exception as error:
        sys.exit(f"W&B did not accept the report: {first_line(error)}")


def _place(run_dir: RunDir, project: str | None, entity: str | None) -> tuple[str, str]:
    """Return the project and the entity of a run."""
    identity = WandbIdentity.of(run_dir, project, entity)
    return identity.project, identity.entity or default_entity()


def _send_project(place: tuple[str, str], members: Sequence[tuple[Run, RunDir]]) -> None:
    project, entity = place
    run_dirs = [run_dir for _, run_dir in members]
    complete = complete_runs(project, entity, run_dirs)
    if complete:
        print(f"{len(complete)} of {len(run_dirs)} runs are complete in {entity}/{project}")
    for run_dir in run_dirs:
        if run_dir.path not in complete:
            send_finished_run(run_dir, project, entity)
    runs = [run for run, _ in members]
    print(f"the study is at {save_study(project, entity, runs)}")
    print(f"the workspace is at {save_workspace(project, entity, runs)}")


def complete_runs(project: str, entity: str, run_dirs: Sequence[RunDir]) -> Collection[object]:
    """Return the paths of the finished runs whose rows and results W&B has, by one question."""
    ids = {
        WandbIdentity.of(run_dir, project, entity).id: run_dir
        for run_dir in run_dirs
        if (run_dir.path / "wandb.json").exists()
    }
    if not ids:
        return set()
    try:
        found = list(
            # Not lazily: that would ask again for each run's summary.
            wandb.Api().runs(
                f"{entity}/{project}",
                {"name": {"$in": list(ids)}},
                per_page=RUNS_PER_PAGE,
                lazy=False,
            )
        )
    except ValueError as error:
        if "find project" not in str(error):
            raise
        return set()  # the first run creates it
    there = {run.id: run for run in found}
    return {
        run_dir.path
        for id, run_dir in ids.items()
        if id in there and _is_complete(there[id], run_dir)
    }


def _is_complete(run: "wandb.apis.public.Run", run_dir: RunDir) -> bool:
    results, sent = run_dir.summary or {}, run.summary_metrics
    same = all(sent.get(key) == results.get(key) for key in ("train_error", "test_error"))
    return run.state == "finished" and sent.get("iteration") == run_dir.last_iteration and same
