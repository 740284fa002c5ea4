import copy

import pytest

from src.runs.naming import differences, flatten, net_name, run_name
from src.runs.run_dir import RunDir

CONFIG = {
    "choices": {"model": "resnet56", "data": "cifar10", "recipe": "cifar10"},
    "model": {"n": 9, "shortcut": "A"},
    "data": {"root": "data", "val_images": 5000},
    "recipe": {"iterations": 64000, "schedule": {"lr": 0.1, "milestones": [0.5, 0.75]}},
    "trainer": {"accelerator": "auto", "devices": 1, "precision": "32-true"},
    "n": 3,
    "seed": 0,
    "runs": "runs",
}


def changed(**values):
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def test_a_folder_is_named_by_what_differs_from_the_defaults():
    def name(**values):
        return run_name(changed(**values), CONFIG, "resnet56")

    assert name() == "resnet56-s0"
    assert name(seed=3) == "resnet56-s3"
    assert name(recipe__iterations=200) == "resnet56-iterations200-s0"
    assert name(model__shortcut="B", recipe__schedule__lr=0.05) == "resnet56-shortcutB-lr0.05-s0"
    assert name(recipe__schedule__milestones=[0.5]) == "resnet56-milestones0.5-s0"
    assert name(trainer__precision="bf16-mixed") == "resnet56-bf16-mixed-s0"
    assert name(model__n=4) == "resnet56-n4-s0"


def test_where_a_run_happens_is_not_part_of_its_name():
    elsewhere = changed(trainer__accelerator="gpu", trainer__devices=8, data__root="/elsewhere", runs="/more")
    assert run_name(elsewhere, CONFIG, "resnet56") == "resnet56-s0"


@pytest.mark.parametrize(
    ("model", "n", "name"),
    [
        ("resnet56", 9, "resnet56"),
        ("resnet", 9, "resnet56"),
        ("plain", 200, "plain1202"),
        ("resnet50", None, "resnet50"),
    ],
)
def test_nets_of_the_same_depth_share_a_name(model, n, name):
    assert net_name(model, n) == name


def test_a_generic_net_is_named_by_its_depth_alone():
    assert run_name(changed(model__n=18, n=18), CONFIG, "resnet") == "resnet110-s0"


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


@pytest.mark.parametrize("value", [0, False, None])
def test_a_key_that_came_after_a_run_is_off_in_it(tmp_path, value):
    RunDir(tmp_path, CONFIG).plan()
    RunDir(tmp_path, changed(recipe__later=value)).check_same_config()
    with pytest.raises(ValueError, match="recipe.later was None, now 200"):
        RunDir(tmp_path, changed(recipe__later=200)).check_same_config()
    assert differences({"recipe.later": 200}, {"recipe.later": value}) == f"recipe.later was 200, now {value}"
