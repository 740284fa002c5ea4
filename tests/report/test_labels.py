from run_dirs import make_config, read_conf

from src.report.labels import short_names, variant_labels


def test_labels_leave_out_defaults_and_what_all_runs_have():
    configs = [
        make_config("plain", recipe__iterations=2000),
        make_config("resnet", recipe__iterations=2000, trainer__precision="bf16-mixed"),
        make_config("resnet", recipe__iterations=2000, model__shortcut="B", seed=1),
    ]
    names = ["plain", "residual", "residual"]
    assert variant_labels(configs, names) == ["", "bf16-mixed", "shortcut B"]
    assert variant_labels(configs, names, r"model\..*") == ["", "", "shortcut B"]
    assert variant_labels(configs[1:2], names[1:2]) == [""]

    stored = make_config()
    del stored["recipe"]["precise_bn_batches"]  # a key that was added later
    assert variant_labels([stored, make_config()], ["resnet", "resnet"]) == ["", ""]


def test_nets_of_one_name_that_differ_by_their_files_alone_have_different_labels():
    """Table 3: these values are the defaults of their files, so none of them was changed."""
    files = ("resnet34", "resnet34b", "resnet34c", "resnet50")
    configs = []
    for name in files:
        config = make_config(data="imagenet")
        config["choices"]["model"], config["model"] = name, read_conf("model", name)
        configs.append(config)
    by_depth = variant_labels(configs, ["residual-34"] * 3 + ["residual-50"])
    assert by_depth == ["shortcut A", "shortcut B", "shortcut C", ""]
    by_family = variant_labels(configs, ["residual"] * 4)
    # ResNet-34 B and ResNet-50 differ in depth alone.
    assert by_family == ["shortcut A", "shortcut B", "shortcut C", "shortcut B"]
    assert variant_labels(configs[:2], ["residual-34", "plain-34"]) == ["", ""]


def test_short_names_keep_the_net_and_drop_what_all_names_have():
    assert short_names(["plain20-a-b", "resnet20-a-b"]) == ["plain20", "resnet20"]
    assert short_names(["resnet20-lr1-bf16-mixed", "resnet20-lr1"]) == [
        "resnet20-bf16-mixed",
        "resnet20",
    ]
    assert short_names(["resnet20-lr1"]) == ["resnet20-lr1"]
