import pytest
from run_dirs import make_config, write_run

from src.report.differences import claim, degradation, seed_statistics
from src.report.reading import read_runs
from src.tables import read_csv, write_csv


def test_degradation_compares_the_deepest_with_the_shallowest(tmp_path):
    for seed, more in ((0, 0), (1, 2)):
        write_run(tmp_path, make_config("plain", 20, seed), final=(28 + more, 30))
    write_run(tmp_path, make_config("plain", 32), final=(99, 30))
    write_run(tmp_path, make_config("plain", 56), final=(71.2, 30))
    write_run(tmp_path, make_config("plain", 110), [(90, 90)])
    write_run(tmp_path, make_config("resnet", 20), final=(26, 30))
    write_run(tmp_path, make_config("resnet", 56), final=(24.5, 30))
    assert degradation(read_runs([tmp_path])[0]) == [
        "cifar10: plain: 56 layers 71.20% > 20 layers 29.00 ± 1.41% (training error), "
        "degradation: +42.20 points (no interval); "
        "residual: 56 layers 24.50% < 20 layers 26.00% (training error), "
        "no degradation: -1.50 points (no interval)"
    ]


def test_degradation_compares_only_nets_that_differ_in_nothing_but_depth(tmp_path):
    write_run(tmp_path, make_config("plain", 20), final=(28, 30))
    write_run(tmp_path, make_config("plain", 56, recipe__iterations=2000), final=(71, 30))
    write_run(tmp_path, make_config("resnet", 20, model__shortcut="B"), final=(28, 30))
    write_run(tmp_path, make_config("resnet", 56), final=(29, 30))
    assert degradation(read_runs([tmp_path])[0]) == []
    write_run(
        tmp_path, make_config("plain", 20, recipe__iterations=2000), final=(28, 30), name="short"
    )
    write_run(tmp_path, make_config("plain", 32), final=(28, 30))
    assert [
        line.partition(": 56")[0].partition(": 32")[0]
        for line in degradation(read_runs([tmp_path])[0])
    ] == [
        "cifar10: plain",
        "cifar10 (iterations 2000): plain",
    ]


def test_degradation_has_an_interval_from_two_seeds_of_each_depth_on(tmp_path):
    for seed, more in ((0, 0), (1, 2)):
        write_run(tmp_path, make_config("plain", 20, seed), final=(28 + more, 30))
        write_run(tmp_path, make_config("plain", 56, seed), final=(68 + more, 30))
    [sentence] = degradation(read_runs([tmp_path])[0])
    # 40 -+ t(0.975, 2 degrees of freedom) * sqrt(2 / 2 + 2 / 2)
    assert sentence.endswith("degradation: +40.00 points [+33.92, +46.08]")


def statistics(path):
    return seed_statistics([run.row for run in read_runs([path])[0] if run.finished])


@pytest.mark.parametrize(
    ("data", "override"),
    [
        ("cifar10", {"data__val_images": 5000}),
        ("cifar10", {"recipe__batch_norm_images": 64}),
        ("cifar10", {"recipe__schedule__lr": 0.2}),
        ("digits", {"recipe__iterations": 2000}),
        ("digits", {"recipe__schedule__lr": 0.2}),
        ("digits", {"model__init": "xavier"}),
    ],
)
def test_nets_that_were_trained_in_different_ways_are_not_compared(tmp_path, data, override):
    for seed in (0, 1):
        write_run(tmp_path, make_config("plain", 20, seed, data), final=(4, 8 + seed))
        other = make_config("resnet", 20, seed, data, **override)
        write_run(tmp_path, other, final=(4, 6 + seed), name=f"resnet20-x-s{seed}")
    assert not [line for line in statistics(tmp_path) if " minus " in line]


def test_nets_with_several_seeds_are_compared_if_they_differ_in_one_respect(tmp_path):
    nets = [
        make_config("plain", 20),
        make_config("plain", 56),
        make_config("resnet", 20),
        make_config("resnet", 20, trainer__precision="bf16-mixed"),
        make_config("resnet", 56, recipe__iterations=2000),
    ]
    for i, config in enumerate(nets):
        name = config["choices"]["model"] + ("-bf16" if i == 3 else "")
        for seed in (0, 1, 2):
            error = 10 * i + seed
            final = (error / 2, error)
            write_run(tmp_path, config | {"seed": seed}, final=final, name=f"{name}-s{seed}")
    write_run(tmp_path, make_config("resnet", 110), final=(1, 1))
    compared = [line.partition(":")[0] for line in statistics(tmp_path) if " minus " in line]
    assert compared == [
        "resnet20 minus plain20",
        "plain56 minus plain20",
        "resnet20 minus resnet20-bf16",
    ]
    assert statistics(tmp_path)[1] == (
        "plain56 minus plain20: training error +5.00 points [+3.87, +6.13], "
        "test error +10.00 points [+7.73, +12.27] (95% intervals, 3 and 3 seeds)"
    )


def test_the_difference_that_five_seeds_detect_follows_from_the_seeds(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path, make_config(seed=seed), final=(1, 8 + seed))
        write_run(tmp_path, make_config("plain", seed=seed), final=(1, 5))
    write_run(tmp_path, make_config("resnet", 56), final=(1, 2))
    detectable = [line for line in statistics(tmp_path) if "detect" in line]
    assert detectable == [
        "resnet20: the test error has a standard deviation of 1.00 over 3 seeds; at that, 5 seeds "
        "each detect a difference of 2.02 points between two nets (two-sided 5%, power 80%)"
    ]


def test_statistics_are_the_same_from_a_csv_file(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, make_config("plain", seed=seed), final=(4, 8 + seed))
        write_run(tmp_path, make_config(seed=seed), final=(4, 6 + seed))
    rows = [run.row for run in read_runs([tmp_path])[0]]
    write_csv(tmp_path / "rows.csv", rows)
    assert seed_statistics(read_csv(tmp_path / "rows.csv")) == seed_statistics(rows)
    assert len(seed_statistics(rows)) == 3


def test_protocols_are_compared_with_themselves_and_named(tmp_path):
    rows = [
        {"run": f"{net}-s{seed}", "config": net, "family": net, "protocol": protocol}
        | {"train_error": 1.0, "test_error": error + seed}
        for net, error in (("plain", 30), ("residual", 25))
        for protocol in ("center", "10crop")
        for seed in (0, 1)
    ]
    compared = [line.partition(":")[0] for line in seed_statistics(rows)]
    assert compared[:2] == ["residual minus plain", "residual, 10crop minus plain, 10crop"]
    assert compared[2:] == ["plain", "residual"]  # the differences that seeds detect, by center


@pytest.mark.parametrize(
    ("plain", "residual", "sentence"),
    [
        (
            71.2,
            [24.5],
            "depth makes plain nets train worse, residual nets not, as the paper claims",
        ),
        (71.2, [30.0], "depth makes residual nets train worse, too, but less than plain nets"),
        (
            71.2,
            [30, 24],
            "depth makes some residual nets train worse, too, but less than plain net",
        ),
        (
            27.0,
            [30.0],
            "these nets do not show that depth makes plain nets train worse and residua",
        ),
        (
            26.0,
            [24.5],
            "these nets do not show that depth makes plain nets train worse and residua",
        ),
        (
            20.0,
            [19.5],
            "these nets do not show that depth makes plain nets train worse and residua",
        ),
        # Equal in the table.
        (
            71.2,
            [26.001],
            "depth makes plain nets train worse, residual nets not, as the paper clai",
        ),
        (
            26.001,
            [24],
            "these nets do not show that depth makes plain nets train worse and residua",
        ),
        (71.2, [], "no comparison of plain with residual nets: that takes two depths of each"),
        (None, [24.5], "no comparison of plain with residual nets: that takes two depths of each"),
    ],
)
def test_the_claim_is_what_the_training_errors_bear_out(tmp_path, plain, residual, sentence):
    if plain:
        write_run(tmp_path, make_config("plain", 20), final=(26, 30))
        write_run(tmp_path, make_config("plain", 56), final=(plain, 30))
    for shortcut, error in zip("AB", residual, strict=False):
        for depth, final in ((20, 26), (56, error)):
            config = make_config("resnet", depth, model__shortcut=shortcut)
            write_run(tmp_path, config, final=(final, 30), name=f"{shortcut}{depth}")
    (found,) = claim(read_runs([tmp_path])[0])
    assert found.startswith(f"cifar10: {sentence}")


def test_errors_that_are_equal_in_the_table_are_no_degradation(tmp_path):
    write_run(tmp_path, make_config("plain", 20), final=(26.001, 30))
    write_run(tmp_path, make_config("plain", 56), final=(26.004, 30))
    assert degradation(read_runs([tmp_path])[0]) == [
        "cifar10: plain: 56 layers 26.00% = 20 layers 26.00% (training error), "
        "no degradation: +0.00 points (no interval)"
    ]
