"""Sweeps through Hydra: with the launcher of this project, and with others."""

from pathlib import Path

import pytest
from command_line import call_here
from conftest import TINY


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
