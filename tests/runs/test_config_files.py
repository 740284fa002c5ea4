"""config.yaml of a run, and what becomes of it when the config files or the code change."""

from pathlib import Path

import pytest
import yaml

from src.runs.config_files import (
    RENAMED_KEYS,
    RENAMED_VALUES,
    check_targets,
    chosen_values,
    defaults_of,
    file_defaults,
    flatten,
    read_config,
    targets,
    unflatten,
    without_implied_targets,
)
from src.runs.run_dir import RunDir

TARGETS = {"model": {"_target_": "a.b", "parts": [{"_target_": "c"}]}, "data": {"root": "data"}}


@pytest.fixture
def stored(find):
    """A run that is not a default one, with its config.yaml."""
    run_dir = find("model=resnet20", "recipe.precise_bn_batches=3", "trainer.precision=32-true")
    run_dir.create()
    return run_dir


def edit(run_dir, change):
    """Apply a change to the flat keys of a stored config.yaml."""
    path = run_dir.path / "config.yaml"
    flat = flatten(yaml.safe_load(path.read_text()))
    change(flat)
    path.write_text(yaml.safe_dump(unflatten(flat)))


def assert_same_identity(run_dir):
    """Assert that the stored config still belongs to the run, and is read as the run's own."""
    run_dir.check_same_config()
    opened = RunDir.open(run_dir.path)
    assert opened.key == run_dir.key
    assert opened.config == run_dir.config


def test_nested_keys_are_flattened_and_lists_are_values():
    nested = {"a": {"b": 1, "c": {}}, "d": [2]}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d": [2]}
    assert unflatten(flatten(nested)) == nested


def test_a_config_file_has_the_values_of_those_it_builds_on():
    values = file_defaults("model", "resnet152")
    assert (values["model.depth"], values["model.shortcut"]) == (152, "B")
    assert values["model._target_"] == "src.models.resnet.resnet_imagenet"
    assert "model.n" not in file_defaults("model", "resnet")  # n: ${n} is no default
    assert file_defaults("model", "resnet57") == {}


def test_the_default_recipe_is_that_of_the_data():
    choices = {"model": "vgg16", "data": "imagenet", "recipe": "vgg"}
    assert defaults_of(choices)["recipe.schedule.lr"] == 0.1
    assert chosen_values(choices)["recipe.schedule.lr"] == 0.01
    assert defaults_of(choices)["trainer.devices"] == 1


def test_the_defaults_of_the_files_are_those_that_hydra_composes(find):
    run_dir = find("model=resnet56", "data=cifar10")
    of_files = defaults_of(run_dir.config["choices"])
    assert {key: run_dir.defaults[key] for key in of_files} == of_files


def test_config_yaml_leaves_out_the_code_that_config_files_name(stored):
    config = yaml.safe_load((stored.path / "config.yaml").read_text())
    assert "_target_" not in str(config)
    assert config == without_implied_targets(stored.config)
    assert config["recipe"]["optimizer"]["momentum"] == 0.9
    # Reading fills in what the files name now, so the code may have moved in between.
    assert_same_identity(stored)


def test_config_yaml_keeps_the_code_that_no_config_file_names(find):
    run_dir = find("model._target_=src.models.resnet.other")
    run_dir.create()
    config = yaml.safe_load((run_dir.path / "config.yaml").read_text())
    assert config["model"]["_target_"] == "src.models.resnet.other"
    assert "_target_" not in config["recipe"]["optimizer"]
    assert_same_identity(run_dir)


def test_a_stored_target_that_the_config_file_still_names_is_no_difference(stored):
    target = {"model._target_": "src.models.resnet.resnet"}
    edit(stored, lambda flat: flat.update(target))
    assert_same_identity(stored)


def test_a_stored_target_that_the_config_file_no_longer_names_is_a_difference(stored):
    edit(stored, lambda flat: flat.update({"model._target_": "src.models.resnet.former"}))
    assert RunDir.open(stored.path).key != stored.key
    with pytest.raises(ValueError, match=r"model\._target_ was src\.models\.resnet\.former, now "):
        stored.check_same_config()


@pytest.mark.parametrize(
    "added", ["data.flip", "recipe.schedule.warmup_from_n", "recipe.log_every", "trainer.precision"]
)
def test_a_key_that_was_added_after_a_run_has_its_default_in_it(stored, added):
    edit(stored, lambda flat: flat.pop(added))
    assert_same_identity(stored)


def test_a_key_that_was_added_after_a_run_and_is_set_now_is_a_difference(stored):
    edit(stored, lambda flat: flat.pop("recipe.precise_bn_batches"))
    with pytest.raises(ValueError, match=r"recipe\.precise_bn_batches was 0, now 3"):
        stored.check_same_config()


@pytest.mark.parametrize("old", sorted(RENAMED_KEYS.keys() - {"runs", "experiments"}))
def test_a_stored_key_that_was_renamed_is_read_under_its_present_name(find, old):
    """The key of the output directory is the exception: by it version 0.1 is recognized."""
    new = RENAMED_KEYS[old]
    overrides = ["data=imagenet"] if new == "data.color_noise" else []
    overrides += ["recipe=imagenet_plateau"] if new == "recipe.schedule.max_reductions" else []
    overrides += ["logger=wandb"] if new.startswith("logger.wandb") else []
    run_dir = find(*overrides, "trainer.precision=32-true")
    run_dir.create()
    edit(run_dir, lambda flat: flat.update({old: flat.pop(new)}))
    assert_same_identity(run_dir)


@pytest.mark.parametrize(
    ("model", "old", "name"),
    [
        ("resnet20", "fan_in", "resnet20-s0"),
        ("resnet20", "fan_out", "resnet20-inithe_fan_out-s0"),
        ("resnext50_32x4d", "fan_out", "resnext50_32x4d-s0"),
        ("vgg16", "glorot", "vgg16-s0"),
    ],
)
def test_a_stored_value_that_was_renamed_keeps_its_run(find, model, old, name):
    present = RENAMED_VALUES["model.init"][old]
    run_dir = find(f"model={model}", f"model.init={present}", "trainer.precision=32-true")
    run_dir.create()
    edit(run_dir, lambda flat: flat.update({"model.init": old}))
    edit(run_dir, lambda flat: flat.pop("model.norm", None))
    assert_same_identity(run_dir)
    assert run_dir.path.name == name
    # A checkpoint of that time has the old value in its run key.
    former = {key: (old if value == present else value) for key, value in run_dir.key.items()}
    run_dir.check_same_key(former, "it is")


def test_a_renamed_key_with_a_value_of_its_own_keeps_its_run(stored):
    edit(
        stored,
        lambda flat: flat.update({"recipe.norm_batches": flat.pop("recipe.precise_bn_batches")}),
    )
    assert_same_identity(stored)
    assert RunDir.open(stored.path).path.name == "resnet20-precise_bn_batches3-s0"
    # A checkpoint has the run key in it, with the names of its time.
    former = {("recipe.norm_batches" if "bn" in key else key): v for key, v in stored.key.items()}
    assert former != stored.key
    stored.check_same_key(former, "it is")


def test_a_run_of_version_0_1_is_refused_with_what_to_do(stored, tmp_path):
    edit(stored, lambda flat: flat.update({"runs": flat.pop("output_dir")}))
    message = f"{stored.path} was written by version 0.1, which this version cannot read: "
    for read in (stored.check_same_config, lambda: RunDir.open(stored.path)):
        with pytest.raises(ValueError, match="finish and report it with that version") as error:
            read()
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("text", ["", "[1, 2]", "model: {n: 3}", "choices: resnet"])
def test_a_file_that_holds_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="config.yaml holds no config of a run"):
        read_config(tmp_path / "config.yaml")


def test_targets_are_found_at_every_depth():
    assert [*targets(TARGETS)] == ["a.b", "c"]


def test_only_code_that_the_config_files_name_is_called_for_a_run_directory(find):
    check_targets(find("data=imagenet", "model=vgg16").config, Path("run"))
    with pytest.raises(ValueError, match="run/config.yaml calls a.b, which is not allowed"):
        check_targets(TARGETS, Path("run/config.yaml"))
    with pytest.raises(ValueError, match="calls c, which is not allowed"):
        check_targets({"model": {}, "data": TARGETS["model"]["parts"][0]}, Path("run"))
