import json

import pytest
from run_dirs import make_config, write_run

from src.report.reading import read_runs
from src.report.results_table import results_table
from src.tables import read_csv, write_csv


def test_the_state_of_a_run_follows_from_its_files(tmp_path):
    errors = [(60, 50), (30, 20)]
    write_run(tmp_path, make_config("plain", seed=0), errors, final=(30, 20))
    write_run(tmp_path, make_config("plain", seed=1), errors)
    write_run(tmp_path, make_config("plain", seed=2), errors, failure="\n out of \x1b[31mmemory\n2")
    write_run(tmp_path, make_config("plain", seed=3))
    started = write_run(tmp_path, make_config("plain", seed=4))
    (started / "lock").touch()
    finished = make_config("plain", seed=5)
    write_run(tmp_path, finished, errors, final=(30, 20), failure="of an earlier attempt")
    runs, skipped = read_runs([tmp_path])
    assert [(run.row["seed"], run.state, run.error) for run in runs] == [
        (0, "finished", ""),
        (1, "unfinished", ""),
        (2, "failed", "out of [31mmemory"),
        (3, "not started", ""),
        (4, "unfinished", ""),
        (5, "finished", ""),
    ]
    assert skipped == []
    assert runs[0].curve("test/error") == [(8000, 50), (16000, 20)]
    assert [i for i, _ in runs[0].curve("train/loss")] == [4000, 8000, 12000, 16000]


@pytest.mark.parametrize(
    ("function", "model", "family", "depth"),
    [
        ("resnet.plain", {"n": 3}, "plain", 20),
        ("resnet.plain_imagenet", {"depth": 34}, "plain", 34),
        ("resnet.resnet", {"n": 200}, "residual", 1202),
        ("resnet.resnet_imagenet", {"depth": 50}, "residual", 50),
        ("highway.highway", {"n": 9}, "highway", 56),
        ("preact_resnet.preact_resnet_bottleneck", {"n": 18}, "preactivation", 164),
    ],
)
def test_family_and_depth_follow_from_the_config(tmp_path, function, model, family, depth):
    config = make_config() | {"model": {"_target_": f"src.models.{function}"} | model}
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (run,), _ = read_runs([tmp_path])
    assert (run.row["family"], run.row["depth"]) == (family, depth)


def test_plain_nets_come_first_then_residual_ones_by_depth(tmp_path):
    nets = (("preactivation", 20), ("resnet", 110), ("resnet", 20), ("plain", 56), ("plain", 20))
    for kind, depth in nets:
        write_run(tmp_path, make_config(kind, depth))
    names = [f"{run.row['model']}" for run in read_runs([tmp_path])[0]]
    assert names == ["plain20", "plain56", "resnet20", "resnet110", "preactivation20"]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("summary.json", '{"train_error": 1', "JSONDecodeError"),
        ("summary.json", '{"train_error": null}', "no number for parameters, macs"),
        ("config.yaml", "model: [", "ParserError"),
        ("config.yaml", "", "holds no config of a run"),
        ("config.yaml", "choices: {data: digits, model: plain}", "KeyError"),
        ("metrics.csv", "iteration,lr\n1,fast\n", "ValueError: could not convert string to float"),
        ("metrics.csv", "lr\n0.1\n", "without an iteration"),
        ("layers.csv", "iteration,layer,gradient,response\n1,conv,\x00,\n", "ValueError"),
    ],
)
def test_an_unreadable_directory_is_skipped_and_the_others_are_read(tmp_path, file, text, reason):
    broken = write_run(tmp_path, make_config(seed=0), [(60, 50)], final=(3, 9))
    write_run(tmp_path, make_config(seed=1), [(60, 50)], final=(3, 9))
    (broken / file).write_text(text)
    runs, [(path, why)] = read_runs([tmp_path])
    assert [run.row["seed"] for run in runs] == [1]
    assert path == broken
    assert reason in why
    assert "\n" not in why


def test_an_incomplete_last_row_is_ignored(tmp_path):
    layers = [(1.0, 0.5), (2.0, None)]
    path = write_run(tmp_path, make_config(), [(60, 50), (41, 31)], layers=layers)
    for name, part in (("metrics.csv", "20000,0.1,1.0,4"), ("layers.csv", "24000,conv0,1.")):
        with open(path / name, "a") as file:
            file.write(part)
    [run], skipped = read_runs([tmp_path])
    assert run.metrics[-1]["train/error"] == 41
    assert run.layers[-1] == {"iteration": 16000, "gradient": 2.0, "scaled_gradient": 4.0}
    assert [path.name for path, _ in skipped] == ["metrics.csv", "layers.csv"]


def test_an_evaluation_without_all_layers_is_ignored(tmp_path):
    path = write_run(tmp_path, make_config(), [(60, 50)], layers=[(1.0, 0.5), (2.0, None)])
    with open(path / "layers.csv", "a") as file:
        file.write("16000,conv0,7.0,\n")
    [run], _ = read_runs([tmp_path])
    assert run.layers == [
        {"iteration": 8000, "gradient": 1, "scaled_gradient": 2, "response": 0.5},
        {"iteration": 8000, "gradient": 2, "scaled_gradient": 4},
    ]
    assert [row["scaled_gradient"] for row in run.first_layers] == [3, 6]


def test_of_copies_of_a_run_the_most_complete_counts(tmp_path):
    unfinished = write_run(tmp_path / "a", make_config(trainer__devices=2), [(60, 50)])
    finished = write_run(tmp_path / "b", make_config(), [(60, 50)], final=(3, 9))
    runs, skipped = read_runs([tmp_path, tmp_path / "b"])
    assert [run.path for run in runs] == [finished]
    assert skipped == [(unfinished, f"is the same run as {finished}")]


def test_each_protocol_that_a_run_was_tested_by_has_a_row(tmp_path):
    path = write_run(tmp_path, make_config(data="imagenet"), final=(30, 20))
    test = {"test_error": 18.5, "test_error_top5": 5.25, "images": 50000}
    for protocol in ("multiscale", "scales384"):
        (path / f"{protocol}.json").write_text(json.dumps(test | {"protocol": protocol}))
    write_run(tmp_path, make_config("plain", data="imagenet"), [(60, 50)])
    plain, resnet = read_runs([tmp_path])[0]
    assert plain.evaluations == ()
    columns = ("protocol", "train_error", "test_error", "test_error_top5")
    assert [[row[key] for key in columns] for row in resnet.evaluations] == [
        ["center", 30, 20, 1.0],
        ["multiscale", 30, 18.5, 5.25],
        ["scales384", 30, 18.5, 5.25],
    ]
    assert {row["scales"] for row in resnet.evaluations} == {"256-480"}
    write_csv(tmp_path / "rows.csv", resnet.evaluations)
    lines = results_table(read_csv(tmp_path / "rows.csv")).splitlines()[2:]
    assert [[cell.strip() for cell in line.split(" | ")[6:9]] for line in lines] == [
        ["20.00", "1.00", "center"],
        ["18.50", "5.25", "multiscale"],
        ["18.50", "5.25", "scales384"],
    ]


def test_runs_below_a_directory_named_wandb_are_read_but_not_what_wandb_keeps_of_a_run(tmp_path):
    root = tmp_path / "wandb" / "runs"
    path = write_run(root, make_config(), final=(1, 2))
    kept = path / "wandb" / "offline-run-1" / "files"
    kept.mkdir(parents=True)
    (kept / "config.yaml").write_text("wandb_version: 1")
    runs, skipped = read_runs([root])
    assert ([run.path for run in runs], skipped) == ([path], [])
