import pytest
from folders import make_config

from src.report.compare import DEPTH, NET, SEED, alike, departures, variants
from src.report.table import paper_value


def test_only_what_may_differ_leaves_runs_alike():
    base = make_config("plain", 20)
    assert alike(base, SEED) == alike(make_config("plain", 20, seed=7, trainer__devices=4, runs="elsewhere"), SEED)
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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({}, ""),
        ({"trainer__precision": "bf16-mixed", "data__val_images": 5000, "recipe__eval_every": 7}, ""),
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


def test_the_papers_numbers_stand_with_their_place():
    def value(family, depth, shortcut="A", data="cifar10"):
        return paper_value({"family": family, "depth": depth, "shortcut": shortcut, "data": data})

    table6 = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61, 1202: 7.93}
    found = {depth: value("residual", depth) for depth in table6}
    assert {depth: row["error"] for depth, row in found.items()} == table6
    assert {row["where"] for row in found.values()} == {"Table 6"}
    assert [found[110][key] for key in ("deviation", "runs", "best")] == [0.16, 5, 6.43]
    assert [value("preactivation", d, s)["error"] for d, s in ((110, "A"), (164, "B"), (1001, "B"))] == [
        6.37,
        5.46,
        4.89,
    ]
    assert value("plain", 20, None) is value("residual", 20, "B") is value("residual", 20, data="digits") is None
