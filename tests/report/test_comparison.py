import pytest
from run_dirs import make_config

from src.report.comparison import DEPTH, NET, SEED, alike, departures, variants
from src.report.results_table import paper_value


def test_only_what_may_differ_leaves_runs_alike():
    base = make_config("plain", 20)
    assert alike(base, SEED) == alike(
        make_config("plain", 20, seed=7, trainer__devices=4, runs="elsewhere"), SEED
    )
    for other in (
        make_config("plain", 56),
        make_config("resnet", 20),
        make_config("plain", 20, recipe__schedule__lr=0.2),
        make_config("plain", 20, trainer__precision="bf16-mixed"),
        make_config("plain", 20, data__val_images=5000),
    ):
        assert alike(base, SEED) != alike(other, SEED)
    assert alike(base, DEPTH) == alike(make_config("plain", 56, seed=1), DEPTH)
    assert alike(base, DEPTH) != alike(make_config("resnet", 20), DEPTH)
    assert alike(base, NET) == alike(make_config("resnet", 56), NET)
    assert alike(base, NET) != alike(make_config("resnet", 56, recipe__iterations=2000), NET)


def test_a_key_that_came_after_a_run_is_at_its_default_in_it():
    before = make_config()
    assert "precise_bn_batches" not in before["recipe"]
    assert alike(before, SEED) == alike(make_config(recipe__norm_batches=0), SEED)
    assert alike(before, SEED) != alike(make_config(recipe__norm_batches=200), SEED)
    assert (departures(before), variants([before])) == ("", [""])
    assert departures(make_config(recipe__norm_batches=200)) == "precise_bn_batches 200, not 0"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({}, ""),
        (
            {"trainer__precision": "bf16-mixed", "data__val_images": 5000, "recipe__eval_every": 7},
            "",
        ),
        ({"recipe__iterations": 2000}, "2,000 of 64,000 iterations"),
        ({"recipe__batch_size": 64}, "batch_size 64, not 128"),
        (
            {"recipe__batch_size": 256, "recipe__iterations": 32000},
            "32,000 of 64,000 iterations; batch_size 256, not 128",
        ),
        ({"recipe__schedule__warmup_from_n": None}, "warmup_from_n None, not 18"),
        ({"data__normalization": "channel"}, "normalization channel, not pixel"),
        ({"model__init": "fan_out"}, "init fan_out, not fan_in"),
        ({"choices__recipe": "digits", "recipe__iterations": 800}, "800 of 64,000 iterations"),
        ({"choices__data": "digits", "recipe__iterations": 800}, ""),
    ],
)
def test_departures_from_the_papers_training_are_told_in_words(overrides, words):
    assert departures(make_config(**overrides)) == words


def test_runs_are_told_apart_by_what_is_unusual_and_not_common():
    configs = [
        make_config("plain", 20, recipe__iterations=2000),
        make_config("resnet", 20, recipe__iterations=2000, trainer__precision="bf16-mixed"),
        make_config("resnet", 20, recipe__iterations=2000, model__shortcut="B", seed=1),
    ]
    assert variants(configs) == ["", "bf16-mixed", "shortcut B"]
    assert variants(configs, r"model\..*") == ["", "", "shortcut B"]
    assert variants(configs[1:2]) == [""]


def value(model, n=None, shortcut="A", data="cifar10", **protocol):
    return paper_value({"model": model, "n": n, "shortcut": shortcut, "data": data, **protocol})


def test_the_papers_numbers_stand_with_their_place():
    table6 = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61, 1202: 7.93}
    found = {depth: value("resnet", (depth - 2) // 6) for depth in table6}
    assert {depth: row["error"] for depth, row in found.items()} == table6
    assert {row["where"] for row in found.values()} == {"Table 6"}
    assert [found[110][key] for key in ("deviation", "runs", "best")] == [0.16, 5, 6.43]
    assert found[20] == value("resnet20", 3, protocol="center")
    preactivation = [
        value(f"preactivation{d}", shortcut=s)["error"]
        for d, s in ((110, "A"), (164, "B"), (1001, "B"))
    ]
    assert preactivation == [6.37, 5.46, 4.89]
    assert (
        value("plain", 3, None)
        is value("resnet20", 3, "B")
        is value("resnet", 3, data="digits")
        is None
    )


def test_tests_of_photos_stand_beside_those_by_the_same_protocol():
    def tested(protocol, *net):
        found = value(net[0], None, net[1], "imagenet", protocol=protocol)
        return found and (found["error"], found["error_top5"], found["where"])

    assert tested("10crop", "plain18", None) == (27.94, "", "Table 2")
    assert tested("10crop", "resnet34", "A") == (25.03, 7.76, "Tables 2 and 3")
    assert (
        tested("10crop", "resnet34", "B")
        == tested("10crop", "resnet34b", "B")
        == (24.52, 7.46, "Table 3")
    )
    assert tested("multiscale", "resnet34c", "C") == (21.53, 5.6, "Table 4")
    assert [tested(by, "resnet152", "B")[:2] for by in ("center", "10crop", "multiscale")] == [
        (23.0, 6.7), (21.43, 5.71), (19.38, 4.49),
    ]  # fmt: skip
    others = [
        ("multiscale", "resnet34", "A"),
        ("center", "plain34", None),
        ("center", "resnext50_32x4d", "B"),
    ]
    assert {tested(*other) for other in [*others, ("10crop", "wide_resnet50_2", "B")]} == {None}


def test_a_run_on_fewer_photos_than_the_papers_departs_from_it():
    config = make_config(data="imagenet", choices__recipe="imagenet")
    told = "127 of 1,281,167 photos"
    assert told in departures(config, 127) and "photos" not in departures(config, 1281167)
    config["data"]["val_images"] = 1167
    assert "photos" not in departures(config, 1280000) and told in departures(config, 127)
