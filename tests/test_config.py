"""Configs are composed, validated, and led to their run directory."""

from pathlib import Path

import pytest

from src.config import (
    check_targets,
    compose_config,
    find_run_dir,
    resolve,
    targets,
    without_hydra,
)

TARGETS = {"model": {"_target_": "a.b", "parts": [{"_target_": "c"}]}, "data": {"root": "data"}}


def test_a_config_is_plain_values_with_the_names_chosen_in_each_group():
    values, defaults = resolve(compose_config("model=resnet20", "recipe.iterations=5"), "train")
    choices = {"model": "resnet20", "data": "digits", "recipe": "digits", "logger": "csv"}
    assert values["choices"] == defaults["choices"] == choices
    assert (values["recipe"]["iterations"], defaults["recipe"]["iterations"]) == (5, 800)
    assert values["model"]["n"] == 3
    assert "hydra" not in values


def test_the_paper_s_n_reaches_the_net():
    assert resolve(compose_config("model=plain", "n=9"), "train")[0]["model"]["n"] == 9


def test_hydras_own_node_is_left_out():
    config = compose_config()
    assert "hydra" not in without_hydra(config)
    assert list(without_hydra(config)) == list(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.schedule.lr=fast", "recipe.schedule.lr=fast must be a number, such as 0.1"),
        ("recipe.schedule.milestones=0.5", "recipe.schedule.milestones=0.5 must be a list"),
        ("data.flip=1", "data.flip=1 must be true or false, such as False"),
        ("seed=true", "seed=True must be an integer, such as 0"),
        ("output_dir=5", "output_dir=5 must be a string, such as runs"),
        ("recipe.iterations=1.5", "recipe.iterations=1.5 must be an integer"),
        ("+more=1", "there is no key more; --help lists all keys"),
        ("seed=4294967296", r"seed=4294967296 must be from 0 to 2\*\*32 - 1"),
        ("recipe.log_every=0", "recipe.log_every=0 must be at least 1"),
        ("recipe.precise_bn_batches=-1", "recipe.precise_bn_batches=-1 must be at least 0"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(override, message):
    config = compose_config(override)
    with pytest.raises(ValueError, match=message):
        find_run_dir(config)


@pytest.mark.parametrize(
    "override",
    ["recipe.schedule.lr=1", "recipe.schedule.warmup_from_n=null", "trainer.devices=[0,1]"],
)
def test_a_value_that_some_run_can_have_is_accepted(override):
    find_run_dir(compose_config(override))


def test_an_experiment_is_overridden_by_the_command_line_alone():
    config = find_run_dir(compose_config("experiment=digits_depth", "seed=4")).config
    assert (config["trainer"]["precision"], config["seed"]) == ("32-true", 4)
    assert config["choices"]["experiment"] == "digits_depth"


def test_a_run_directory_has_the_resolved_precision(find):
    auto = find("trainer.precision=auto", "trainer.accelerator=cpu")
    precision = auto.config["trainer"]["precision"]
    assert precision in ("32-true", "bf16-mixed")
    assert find(f"trainer.precision={precision}").path == auto.path


def test_targets_are_found_at_every_depth():
    assert [*targets(TARGETS)] == ["a.b", "c"]


def test_only_code_that_the_config_files_name_is_called_for_a_run_directory(find):
    check_targets(find("data=imagenet", "model=vgg16").config, Path("run"))
    with pytest.raises(ValueError, match="run/config.yaml calls a.b, which is not allowed"):
        check_targets(TARGETS, Path("run"))
    with pytest.raises(ValueError, match="calls c, which is not allowed"):
        check_targets({"model": {}, "data": TARGETS["model"]["parts"][0]}, Path("run"))
