"""experiments/wandb_sweep.yaml, as `wandb agent` reads it."""

import pytest
import yaml
from command_line import call_here
from conftest import ROOT
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from src.config import compose_config, find_run_dir
from src.tasks.classification import Classifier
from src.training.callbacks.metrics import metric_columns


@pytest.fixture(scope="module")
def sweep():
    return yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())


def trial_arguments(sweep, **values):
    """Return what an agent puts in place of ${args_no_hyphens} for one trial."""
    chosen = {
        name: values.get(name, spec.get("value", spec.get("values", [spec.get("min")])[0]))
        for name, spec in sweep["parameters"].items()
    }
    command = {"args": {name: {"value": value} for name, value in chosen.items()}}
    return create_sweep_command_args(command)["args_no_hyphens"]


def test_each_trial_is_a_run_that_the_command_line_accepts(sweep):
    command = create_sweep_command(list(sweep["command"]))
    assert command[1:5] == ["${interpreter}", "-m", "src.train", "logger=wandb"]
    config = find_run_dir(compose_config("logger=wandb", *trial_arguments(sweep))).config
    assert config["recipe"]["schedule"]["warmup_from_n"] is None
    assert config["data"]["val_images"] == 297
    assert config["logger"]["wandb"]["project"] == sweep["project"]


def test_the_metric_is_one_that_runs_log(sweep):
    assert sweep["metric"]["name"] in metric_columns(Classifier)


def test_a_null_without_quotes_would_be_refused_with_a_message(sweep, capsys):
    arguments = trial_arguments(sweep, **{"recipe.schedule.warmup_from_n": None})
    assert "recipe.schedule.warmup_from_n=None" in arguments
    result = call_here(capsys, *arguments)
    assert result.returncode == 1
    assert "recipe.schedule.warmup_from_n=None must be an integer" in result.stderr
