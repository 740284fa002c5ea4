"""Sweeps through Hydra: with the launcher of this project, and with others."""

from pathlib import Path

import pytest
from command_line import call_here
from conftest import TINY
from omegaconf import OmegaConf

from src.training.launcher import search_path
from src.training.sweep import SweepError


def run_names(output_dir: Path) -> list[str]:
    """Return the names of the finished runs below a directory."""
    return sorted(path.parent.name for path in output_dir.glob("*/*/summary.json"))


def test_an_experiment_is_a_sweep_and_its_old_key_prints_the_new_one(capsys, tmp_path):
    overrides = [*TINY, "experiments=digits_depth", f"output_dir={tmp_path}"]
    done = call_here(capsys, *overrides)
    assert done.returncode == 0, done.stderr
    renamed = "experiments= is now experiment=: reading experiment=digits_depth"
    assert renamed in done.stderr.splitlines()
    plain, residual = run_names(tmp_path)
    assert plain.startswith("plain8-")
    assert residual.startswith("resnet8-")
    assert done.stdout.count("started") == 2


def test_the_processes_of_a_run_search_for_configs_where_the_sweep_does():
    sources = [{"provider": "main", "path": "conf"}, {"provider": "command-line", "path": "/mine"}]
    hydra = {
        "runtime": {"config_sources": sources},
        "overrides": {"hydra": ["hydra.searchpath=[file:///other]", "hydra.mode=MULTIRUN"]},
    }
    arguments = search_path(OmegaConf.create({"hydra": hydra}))
    assert arguments == ["--config-dir=/mine", "hydra.searchpath=[file:///other]"]


def test_a_wrong_value_ends_a_sweep_before_any_run_starts(capsys, tmp_path):
    done = call_here(capsys, "-m", *TINY, "seed=0,-1", f"output_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr == "seed=-1 must be from 0 to 2**32 - 1"
    assert done.stdout == ""
    assert not (tmp_path / "digits").exists()


def test_hydras_own_launcher_trains_each_run_in_this_process(capsys, tmp_path):
    overrides = ["-m", "hydra/launcher=basic", *TINY, "seed=0,1", f"output_dir={tmp_path}"]
    done = call_here(capsys, *overrides)
    assert done.returncode == 0, done.stderr
    assert [name[-2:] for name in run_names(tmp_path)] == ["s0", "s1"]
    assert done.stdout.count(" finished: training error") == 2
    done = call_here(capsys, *overrides)
    assert done.stdout.count(" is finished: training error") == 2


def test_hydras_own_launcher_reports_the_error_of_a_run(capsys, tmp_path):
    overrides = ["-m", "hydra/launcher=basic", *TINY, "seed=0,-1", f"output_dir={tmp_path}"]
    done = call_here(capsys, *overrides)
    assert done.returncode == 1
    assert "seed=-1 must be from 0 to 2**32 - 1" in done.stderr
    assert [name[-2:] for name in run_names(tmp_path)] == ["s0"]


@pytest.mark.slow
def test_a_launcher_that_pickles_the_task_trains_in_another_process(capsys, tmp_path):
    """As joblib's and submitit's launchers do."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = "hydra/launcher=submitit_local"
    done = call_here(capsys, "-m", launcher, *TINY, "seed=1", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert [name[-2:] for name in run_names(tmp_path)] == ["s1"]


@pytest.mark.usefixtures("wandb_user")
def test_a_sweep_that_is_offline_ends_with_one_message_of_wandb(tiny, capsys, tmp_path):
    tiny()  # with another logger, and finished before
    overrides = ["-m", *TINY, "trainer.precision=32-true", f"output_dir={tmp_path}/runs"]
    done = call_here(capsys, *overrides, "logger=wandb")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "W&B" in line] == [
        "W&B is offline (as requested); once it is online, python -m src.report --wandb "
        f"{tmp_path}/runs/digits sends the runs and saves what compares them"
    ]
    assert "W&B" not in call_here(capsys, *overrides).stdout


def test_a_sweep_with_a_failed_run_saves_what_compares_the_others(
    tiny, capsys, tmp_path, monkeypatch
):
    path = tiny().path
    ended = []

    def fail(_):
        raise SweepError("1 of 2 runs failed")

    monkeypatch.setattr("src.training.launcher.Sweep.run", fail)
    monkeypatch.setattr("src.report.wandb_upload.send_sweep", ended.extend)
    overrides = ["-m", *TINY, "trainer.precision=32-true", "logger=wandb", "seed=0,1"]
    done = call_here(capsys, *overrides, f"output_dir={tmp_path}/runs")
    assert (done.returncode, done.stderr) == (1, "1 of 2 runs failed")
    assert [run_dir.path for run_dir in ended] == [path, path.with_name(path.name[:-1] + "1")]


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_user")
def test_a_sweep_in_wandb_ends_with_its_workspace_study_and_report(capsys, tmp_path, server):
    nets = ["trainer.precision=32-true", "model=plain,resnet"]
    overrides = ["-m", *TINY, *nets, "logger=wandb", f"output_dir={tmp_path}"]
    done = call_here(capsys, *overrides)
    assert done.returncode == 0, done.stderr
    assert sorted(run["jobType"] for run in server.runs.values()) == ["study", "train", "train"]
    assert sorted(view["type"] for view in server.views.values()) == ["project-view", "runs"]
    lines = done.stdout.splitlines()[-3:]
    project = f"{server.url}/us/deep-residual-learning"
    for line, what in zip(lines, ("workspace", "study", "report"), strict=True):
        assert line.startswith(f"the {what} is at {project}")
