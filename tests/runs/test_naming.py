"""Which runs are the same, and what their directories are called."""

import shutil

import pytest
import yaml

from src.runs import config_files
from src.runs.config_files import CONF
from src.runs.naming import differences, family, identity_keys, net_name, run_key, run_name


@pytest.fixture
def name(find):
    """Return the name of the directory of a ResNet-56 on CIFAR-10 with further overrides."""
    usual = ("model=resnet56", "data=cifar10", "trainer.precision=32-true")
    return lambda *overrides: find(*usual, *overrides).path.name


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "resnet56-s0"),
        (["seed=3"], "resnet56-s3"),
        (["recipe.iterations=200"], "resnet56-iterations200-s0"),
        (["model.shortcut=B", "recipe.schedule.lr=0.05"], "resnet56-shortcutB-lr0.05-s0"),
        (["recipe.schedule.milestones=[0.5]"], "resnet56-milestones0.5-s0"),
        (["recipe.schedule.milestones=[0.5,0.8]"], "resnet56-milestones0.5_0.8-s0"),
        (["trainer.precision=bf16-mixed"], "resnet56-bf16-mixed-s0"),
        (["model.n=4"], "resnet56-n4-s0"),
    ],
)
def test_a_directory_is_named_by_what_differs_from_the_defaults(name, overrides, expected):
    assert name(*overrides) == expected


def test_a_name_too_long_for_a_file_is_cut_and_still_differs_from_others(name):
    milestones = ",".join(f"0.{i}" for i in range(10, 99))
    names = [
        name(f"recipe.schedule.milestones=[{milestones},{last}]", f"seed={seed}")
        for last, seed in ((0.991, 3), (0.991, 3), (0.992, 3), (0.991, 4))
    ]
    assert names[0] == names[1]
    assert len({*names}) == 3
    assert max(map(len, names)) < 230
    assert names[0].startswith("resnet56-milestones0.1_0.11_")
    # Seeds of one net have names that differ in the seed alone.
    assert names[0].removesuffix("-s3") == names[3].removesuffix("-s4")


@pytest.mark.parametrize(
    "override",
    [
        *("trainer.accelerator=cpu", "trainer.devices=8", "trainer.num_nodes=2"),
        *("trainer.strategy=ddp", "trainer.deterministic=true", "data.root=/elsewhere"),
        *("data.download=false", "compile=none", "activation_checkpointing=true"),
        *("protocol=10crop", "logger=wandb", "sweep.jobs_per_device=2"),
    ],
)
def test_where_and_how_fast_a_run_is_executed_is_not_part_of_its_name(name, override):
    assert name(override) == "resnet56-s0"


def test_which_tasks_data_serve_is_not_part_of_a_run_key():
    config = {"data": {"size": 64, "tasks": ["detection"], "source": "here"}}
    assert identity_keys(config) == {"data.size": 64}


@pytest.mark.parametrize(
    "override",
    ["seed=1", "model=plain56", "recipe.batch_size=64", "data.val_images=0", "+data.bgr=true"],
)
def test_what_can_change_the_result_is_part_of_the_run_key(find, override):
    usual = ("model=resnet56", "data=cifar10", "trainer.precision=32-true")
    assert find(*usual, override).key != find(*usual).key


@pytest.mark.parametrize(
    ("model", "n", "expected"),
    [
        ("resnet56", 9, "resnet56"),
        ("resnet", 9, "resnet56"),
        ("plain", 200, "plain1202"),
        ("resnet50", None, "resnet50"),
    ],
)
def test_nets_of_6n_plus_2_layers_are_named_by_their_depth(model, n, expected):
    assert net_name(model, n) == expected


def test_a_net_by_its_n_and_the_same_net_by_its_name_are_one_run(find):
    by_n = find("model=resnet", "n=9", "trainer.precision=32-true")
    by_name = find("model=resnet56", "trainer.precision=32-true")
    assert by_n.path == by_name.path
    assert by_n.key == by_name.key == {"data": "digits", "net": "resnet56", "seed": 0}
    by_n.create()
    by_name.check_same_config()


def test_the_recipe_of_the_data_is_the_default_and_another_is_named_by_its_values(find):
    assert find("recipe=digits").path == find().path
    other = find("recipe=cifar10", "trainer.precision=32-true").path.name
    assert other == "resnet20-iterations64000-eval_every1000-log_every100-checkpoint_every500-s0"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=imagenet", "model=resnet34", "recipe=imagenet_90_epochs"],
        ["data=imagenet", "model=vgg16", "recipe=vgg"],
        ["data=digits", "model=resnet20", "recipe=imagenet_plateau"],
        ["data=cifar10", "model=highway110"],
    ],
)
def test_the_code_that_config_files_name_is_not_part_of_a_run_key(find, overrides):
    run_dir = find("trainer.precision=32-true", *overrides)
    assert not [key for key in run_dir.key if key.endswith("_target_")]
    assert "src" not in run_dir.path.name


def test_a_recipe_with_other_code_than_the_default_one_is_another_run(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    monkeypatch.setattr(config_files, "CONF", conf)
    usual = yaml.safe_load((CONF / "recipe" / "cifar10.yaml").read_text())
    usual["optimizer"]["_target_"] = "torch.optim.RMSprop"
    (conf / "recipe" / "other.yaml").write_text(yaml.safe_dump(usual))
    config = {
        "choices": {"model": "resnet20", "data": "cifar10", "recipe": "other"},
        "model": {"n": 3},
        "data": {"val_images": 5000},
        "recipe": usual,
        "seed": 0,
    }
    defaults = config_files.defaults_of(config["choices"])
    key = run_key(config, defaults)
    assert key == {"data": "cifar10", "net": "resnet20", "seed": 0, "recipe": "other"}
    assert run_name(key) == "resnet20-other-s0"


def test_imagenet_in_90_epochs_has_a_readable_name(find):
    recipe = ["data=imagenet", "model=resnet34", "recipe=imagenet_90_epochs"]
    assert find("trainer.precision=32-true", *recipe).path.name == (
        "resnet34-iterations450410-milestones0.3333333_0.6666667-precise_bn_batches0-s0"
    )


def test_other_code_than_the_config_file_names_is_part_of_a_run_key(find):
    other = find("model._target_=src.models.resnet.other", "trainer.precision=32-true")
    assert other.key["model._target_"] == "src.models.resnet.other"
    assert other.path.name == "resnet20-_target_src.models.resnet.other-s0"


def test_a_config_without_the_code_of_its_files_has_the_same_run_key(find):
    run_dir = find("model=resnet20", "recipe=cifar10")
    config = run_dir.config | {"model": {**run_dir.config["model"]}}
    del config["model"]["_target_"]
    assert run_key(config, run_dir.defaults) == run_dir.key


def test_differences_are_listed_with_defaults_for_keys_that_one_run_lacks():
    defaults = {"recipe.iterations": 800}
    text = differences({"seed": 0, "recipe.iterations": 5}, {"seed": 1}, defaults)
    assert text == "seed was 0, now 1, recipe.iterations was 5, now 800"
    assert differences({"seed": 0}, {"seed": 0}, defaults) == ""


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet20", "residual"),
        ("resnet50", "residual"),
        ("plain34", "plain"),
        ("highway110", "highway"),
        ("preactivation164", "preactivation"),
        ("vgg16", "vgg"),
    ],
)
def test_a_net_belongs_to_a_family(find, model, expected):
    assert family(find(f"model={model}").config) == expected
