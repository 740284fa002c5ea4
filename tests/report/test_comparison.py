import pytest
from run_dirs import make_config

from src.report.comparison import DEPTH, NET, SEED, comparison_key, departures, paper_result

IMAGENET_IMAGES = 1281167


def test_seeds_share_a_key_and_any_other_difference_makes_another():
    base = comparison_key(make_config("plain"), SEED)
    elsewhere = make_config("plain", seed=7, trainer__devices=4, output_dir="elsewhere")
    assert comparison_key(elsewhere, SEED) == base
    for other in (
        make_config("plain", 56),
        make_config("resnet"),
        make_config("plain", recipe__schedule__lr=0.2),
        make_config("plain", trainer__precision="bf16-mixed"),
        make_config("plain", data__val_images=5000),
    ):
        assert comparison_key(other, SEED) != base


@pytest.mark.parametrize(
    ("ignore", "same", "other"),
    [
        (DEPTH, make_config("plain", 56, seed=1), make_config("resnet", 20)),
        (NET, make_config("resnet", 56), make_config("resnet", 56, recipe__iterations=2000)),
    ],
)
def test_depths_and_nets_share_a_key_if_nothing_else_differs(ignore, same, other):
    base = comparison_key(make_config("plain", 20), ignore)
    assert comparison_key(same, ignore) == base
    assert comparison_key(other, ignore) != base


def test_a_key_that_a_stored_config_lacks_has_its_default():
    stored = make_config()
    del stored["recipe"]["precise_bn_batches"]
    other = make_config(recipe__precise_bn_batches=200)
    assert comparison_key(stored, SEED) == comparison_key(make_config(), SEED)
    assert comparison_key(stored, SEED) != comparison_key(other, SEED)
    assert departures(stored) == ""
    assert departures(other) == "precise_bn_batches 200, not 0"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({}, ""),
        (
            {
                "trainer__precision": "bf16-mixed",
                "data__val_images": 5000,
                "recipe__eval_every": 7,
            },
            "",
        ),
        ({"trainer__sync_batchnorm": True}, ""),
        ({"trainer__gradient_clip_val": 1.0}, "gradient_clip_val 1.0, not null"),
        (
            {"model__dilate": [False, False, True]},
            "dilate [false, false, true], not [false, false, false]",
        ),
        ({"recipe__iterations": 2000}, "2,000 of 64,000 iterations"),
        ({"recipe__batch_size": 64}, "batch_size 64, not 128"),
        (
            {"recipe__batch_size": 256, "recipe__iterations": 32000},
            "32,000 of 64,000 iterations; batch_size 256, not 128",
        ),
        ({"recipe__schedule__warmup_from_n": None}, "warmup_from_n null, not 18"),
        ({"data__normalization": "channel"}, "normalization channel, not pixel"),
        ({"model__init": "he_fan_out"}, "init he_fan_out, not he_fan_in"),
        ({"choices__recipe": "digits", "recipe__iterations": 800}, "800 of 64,000 iterations"),
        ({"choices__data": "digits", "recipe__iterations": 800}, ""),
    ],
)
def test_departures_from_the_papers_training_are_listed(overrides, text):
    assert departures(make_config(**overrides)) == text


def test_fewer_images_than_the_papers_are_a_departure():
    config = make_config(data="imagenet")
    departure = "127 of 1,281,167 images"
    assert departure in departures(config, 127)
    assert "images" not in departures(config, IMAGENET_IMAGES)
    assert "images" not in departures(config)
    config["data"]["val_images"] = 1167
    assert "images" not in departures(config, IMAGENET_IMAGES - 1167)
    assert departure in departures(config, 127)


def paper(model, shortcut="A", data="cifar10", depth=None, **protocol):
    row = {"model": model, "depth": depth, "shortcut": shortcut, "data": data, **protocol}
    return paper_result(row)


def test_cifar10_results_are_those_of_table_6():
    errors = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61, 1202: 7.93}
    results = {depth: paper("resnet", depth=depth) for depth in errors}
    assert {depth: result["error"] for depth, result in results.items()} == errors
    assert {result["where"] for result in results.values()} == {"Table 6"}
    assert [results[110][key] for key in ("std", "runs", "best")] == [0.16, 5, 6.43]
    assert results[20] == paper("resnet20", protocol="center")
    nets = [("preactivation110", "A"), ("preactivation164", "B"), ("preactivation1001", "B")]
    assert [paper(*net)["error"] for net in nets] == [6.37, 5.46, 4.89]
    assert paper("plain", None, depth=20) is None
    assert paper("resnet20", "B") is None
    assert paper("resnet", data="digits", depth=20) is None


@pytest.mark.parametrize(
    ("protocol", "net", "shortcut", "result"),
    [
        ("10crop", "plain18", None, (27.94, "", "Table 2")),
        ("10crop", "resnet34", "A", (25.03, 7.76, "Tables 2 and 3")),
        ("10crop", "resnet34", "B", (24.52, 7.46, "Table 3")),
        ("10crop", "resnet34b", "B", (24.52, 7.46, "Table 3")),
        ("multiscale", "resnet34c", "C", (21.53, 5.6, "Table 4")),
        ("center", "resnet152", "B", (23.0, 6.7, "the authors' README")),
        ("10crop", "resnet152", "B", (21.43, 5.71, "Table 3")),
        ("multiscale", "resnet152", "B", (19.38, 4.49, "Table 4")),
        ("multiscale", "resnet34", "A", None),
        ("center", "plain34", None, None),
        ("center", "resnext50_32x4d", "B", None),
        ("10crop", "wide_resnet50_2", "B", None),
    ],
)
def test_imagenet_results_are_compared_by_the_same_protocol(protocol, net, shortcut, result):
    found = paper(net, shortcut, "imagenet", protocol=protocol)
    assert (found and (found["error"], found["error_top5"], found["where"])) == result


@pytest.mark.parametrize(
    ("net", "scales", "protocol", "result"),
    [
        ("vgg11", "256-256", "scales256", (29.6, 10.4)),
        ("vgg16", "384-384", "scales384", (26.8, 8.7)),
        ("vgg16", "256-512", "scales384", (25.6, 8.1)),
        ("vgg16c", "256-512", "scales384", (27.3, 8.8)),
        ("vgg13", "256-256", "scales224-256-288", (28.2, 9.6)),
        ("vgg19", "256-512", "scales256-384-512", (24.8, 7.5)),
        ("vgg16", "256-480", "scales384", None),
        ("vgg16", "256-512", "multiscale", None),
        ("vgg16_bn", "256-512", "scales384", None),
    ],
)
def test_vgg_results_are_compared_by_the_scales_of_training_and_test(net, scales, protocol, result):
    found = paper(net, None, "imagenet", protocol=protocol, scales=scales)
    assert (found and (found["error"], found["error_top5"])) == result
