"""Configs are composed and led to their run directory."""

import pytest

from src.config import compose_config, find_run_dir, resolve, without_hydra
from src.report.comparison import SEED, comparison_key
from src.runs.run_dir import RunDir

PRECISION = "trainer.precision=32-true"


def test_a_config_is_plain_values_with_the_names_chosen_in_each_group():
    values, defaults = resolve(compose_config("model=resnet20", "recipe.iterations=5"), "train")
    choices = {"model": "resnet20", "data": "digits", "task": "classification"}
    choices |= {"recipe": "digits", "logger": "csv"}
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


def test_an_experiment_is_overridden_by_the_command_line_alone():
    config = find_run_dir(compose_config("experiment=digits_depth", "seed=4")).config
    assert (config["trainer"]["precision"], config["seed"]) == ("32-true", 4)
    assert config["choices"]["experiment"] == "digits_depth"


@pytest.mark.parametrize(
    ("short", "name"),
    [("32", "32-true"), ("16", "16-mixed"), ("bf16", "bf16-mixed"), ("64", "64-true")],
)
def test_the_short_names_of_a_precision_are_the_same_run(find, short, name):
    """Otherwise trainer.precision=32 would be another run, and on a GPU not float32 but TF32."""
    run_dir = find(f"trainer.precision={short}")
    assert run_dir.config["trainer"]["precision"] == name
    assert run_dir.path == find(f"trainer.precision={name}").path


def test_a_run_directory_has_the_resolved_precision(find):
    auto = find("trainer.precision=auto", "trainer.accelerator=cpu")
    precision = auto.config["trainer"]["precision"]
    assert precision in ("32-true", "bf16-mixed")
    assert find(f"trainer.precision={precision}").path == auto.path


@pytest.fixture
def pets(tmp_path):
    """A directory of images in three classes, whose content does not matter here."""
    for name in ("cat", "dog", "emu"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    return tmp_path / "pets"


@pytest.mark.parametrize(
    ("overrides", "classes"),
    [
        (["data=cifar100"], 100),
        (["data=cifar100", "model=vgg11"], 100),
        (["data=mnist", "model=resnet18"], 10),
        (["data=fashion_mnist", "model=highway"], 10),
        (["data=cifar100", "model.num_classes=7"], 7),
        (["data=cifar10"], 10),
        (["data=imagenet", "model=resnet18"], 1000),
    ],
)
def test_the_class_count_of_the_data_reaches_the_net_unless_it_is_set(find, overrides, classes):
    assert find(*overrides).config["model"]["num_classes"] == classes


def test_a_net_without_a_class_count_gets_none(find):
    run_dir = find("data=cifar100", "~model.num_classes")
    assert "num_classes" not in run_dir.config["model"]


def test_the_classes_of_a_directory_of_images_are_counted(find, pets):
    config = find("data=images", f"data.root={pets}").config
    assert config["model"]["num_classes"] == config["data"]["num_classes"] == 3


@pytest.mark.parametrize("data", ["cifar100", "mnist", "fashion_mnist"])
def test_the_class_count_of_the_data_is_not_part_of_a_runs_name(find, data):
    run_dir = find("model=resnet20", f"data={data}", PRECISION)
    assert run_dir.path.parts[-2:] == (data, "resnet20-s0")
    run_dir.create()
    assert RunDir.open(run_dir.path).key == run_dir.key
    other = find("model=resnet20", f"data={data}", "model.num_classes=1000")
    assert "num_classes1000" in other.path.name


def test_runs_on_different_directories_of_images_are_different_runs(find, pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    (pets.parent / "birds" / "emu").mkdir(parents=True)
    (pets.parent / "birds" / "owl").mkdir()

    def on(root):
        return find("model=resnet20", "data=images", f"data.root={root}", PRECISION)

    assert on("pets").path.parts[-2:] == ("images", "resnet20-rootpets-s0")
    assert on("pets/").path == on("./pets").path == on("pets").path
    assert on("birds").path != on("pets").path
    assert comparison_key(on("birds").config, SEED) != comparison_key(on("pets").config, SEED)
    on("pets").create()
    assert RunDir.open(on("pets").path).key == on("pets").key
