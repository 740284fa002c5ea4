import json

import pytest
from run_dirs import make_config, write_run

from src.report.results import read_csv, read_runs, write_csv
from src.report.results_table import results_table


def test_each_state_of_a_folder_is_told(tmp_path):
    write_run(tmp_path, make_config("plain", seed=0), [(60, 50), (30, 20)], final=(30, 20))
    write_run(tmp_path, make_config("plain", seed=1), [(60, 50)])
    write_run(tmp_path, make_config("plain", seed=2), [(60, 50)], failure="\n out of \x1b[31mmemory\nsecond line")
    write_run(tmp_path, make_config("plain", seed=3))
    begun = write_run(tmp_path, make_config("plain", seed=4))
    (begun / "lock").touch()
    write_run(tmp_path, make_config("plain", seed=5), [(60, 50)], final=(30, 20), failure="of a try before")
    runs, left_out = read_runs([tmp_path])
    assert [(run.row["seed"], run.state, run.why) for run in runs] == [
        (0, "finished", ""),
        (1, "unfinished", ""),
        (2, "failed", "out of [31mmemory"),
        (3, "not started", ""),
        (4, "unfinished", ""),
        (5, "finished", ""),
    ]
    assert left_out == []
    assert runs[0].curve("test/error") == [(8000, 50), (16000, 20)]
    assert [iteration for iteration, _ in runs[0].curve("train/loss")] == [4000, 8000, 12000, 16000]


@pytest.mark.parametrize(
    ("target", "model", "family", "depth"),
    [
        ("residual.plain", {"n": 3}, "plain", 20),
        ("residual.plain_imagenet", {"depth": 34}, "plain", 34),
        ("residual.resnet", {"n": 200}, "residual", 1202),
        ("residual.resnet_imagenet", {"depth": 50}, "residual", 50),
        ("highway.highway", {"n": 9}, "highway", 56),
        ("preact_resnet.preact_resnet_bottleneck", {"n": 18}, "preactivation", 164),
    ],
)
def test_family_and_depth_follow_from_the_config(tmp_path, target, model, family, depth):
    config = make_config() | {"model": {"_target_": f"src.models.{target}", "n": 1} | model}
    if "depth" in model:
        del config["model"]["n"]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config))  # YAML too
    (run,), _ = read_runs([tmp_path])
    assert (run.row["family"], run.row["depth"]) == (family, depth)


def test_plain_nets_come_first_then_residual_ones_by_depth(tmp_path):
    for kind, depth in (("preactivation", 20), ("resnet", 110), ("resnet", 20), ("plain", 56), ("plain", 20)):
        write_run(tmp_path, make_config(kind, depth))
    names = [run.row["run"] for run in read_runs([tmp_path])[0]]
    assert names == ["plain20-s0", "plain56-s0", "resnet20-s0", "resnet110-s0", "preactivation20-s0"]


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("summary.json", '{"train_error": 1', "JSONDecodeError"),
        ("summary.json", '{"train_error": null}', "no number for depth, seed, val_images"),
        ("config.yaml", "model: [", "ParserError"),
        ("config.yaml", "", "TypeError"),
        ("config.yaml", "choices: {data: digits, model: plain}", "KeyError: 'model'"),
        ("metrics.csv", "iteration,lr\n1,fast\n", "ValueError: could not convert string to float"),
        ("metrics.csv", "lr\n0.1\n", "without its iteration"),
        ("layers.csv", "iteration,layer,gradient,response\n1,conv,\x00,\n", "ValueError"),
    ],
)
def test_an_unreadable_folder_is_left_out_and_the_others_are_read(tmp_path, file, text, why):
    broken = write_run(tmp_path, make_config(seed=0), [(60, 50)], final=(3, 9))
    write_run(tmp_path, make_config(seed=1), [(60, 50)], final=(3, 9))
    (broken / file).write_text(text)
    runs, [(place, reason)] = read_runs([tmp_path])
    assert [run.row["seed"] for run in runs] == [1]
    assert place == broken
    assert why in reason
    assert "\n" not in reason


def test_a_line_that_is_half_written_does_not_count(tmp_path):
    folder = write_run(tmp_path, make_config(), [(60, 50), (41, 31)], layers=[(1.0, 0.5), (2.0, None)])
    for name, part in (("metrics.csv", "20000,0.1,1.0,4"), ("layers.csv", "24000,conv0,1.")):
        with open(folder / name, "a") as file:
            file.write(part)
    [run], left_out = read_runs([tmp_path])
    assert run.metrics[-1]["train/error"] == 41
    assert run.layers[-1] == {"iteration": 16000, "gradient": 2.0}
    assert [place.name for place, _ in left_out] == ["metrics.csv", "layers.csv"]


def test_an_evaluation_that_lacks_layers_does_not_count(tmp_path):
    folder = write_run(tmp_path, make_config(), [(60, 50)], layers=[(1.0, 0.5), (2.0, None)])
    with open(folder / "layers.csv", "a") as file:
        file.write("16000,conv0,7.0,\n")
    [run], _ = read_runs([tmp_path])
    assert run.layers == [{"iteration": 8000, "gradient": 1, "response": 0.5}, {"iteration": 8000, "gradient": 2}]


def test_a_run_that_is_there_twice_counts_once_and_finished(tmp_path):
    write_run(tmp_path / "a", make_config(trainer__devices=2), [(60, 50)])
    finished = write_run(tmp_path / "b", make_config(), [(60, 50)], final=(3, 9))
    runs, left_out = read_runs([tmp_path, tmp_path / "b"])
    assert [run.folder.path for run in runs] == [finished]
    assert left_out == [(tmp_path / "a/cifar10/resnet20-s0", f"is the same run as {finished}")]


def test_rows_survive_a_csv_file(tmp_path):
    write_run(tmp_path, make_config("plain"), [(60, 50)], final=(30.0, 20.25))
    write_run(tmp_path, make_config("resnet"), [(60, 50)], final=(30, 0.0))
    rows = [run.row for run in read_runs([tmp_path])[0]]
    rows[1]["added"] = "later, with a comma"
    write_csv(tmp_path / "rows.csv", rows)
    again = read_csv(tmp_path / "rows.csv")
    assert [{k: "" if v is None else v for k, v in row.items()} for row in rows] == [
        {k: v for k, v in row.items() if k in known} for row, known in zip(again, rows, strict=True)
    ]
    assert again[0]["added"] == ""


def test_each_protocol_that_a_run_was_tested_by_has_a_row(tmp_path):
    path = write_run(tmp_path, make_config(data="imagenet"), final=(30, 20))
    test = {"protocol": "multiscale", "test_error": 18.5, "test_error_top5": 5.25, "images": 50000}
    (path / "multiscale.json").write_text(json.dumps(test))
    write_run(tmp_path, make_config("plain", data="imagenet"), [(60, 50)])
    plain, resnet = read_runs([tmp_path])[0]
    assert plain.tests == ()
    found = [[row[key] for key in ("protocol", "test_error", "test_error_top5")] for row in resnet.tests]
    assert found == [["center", 20, 1.0], ["multiscale", 18.5, 5.25]]
    assert {row["train_error"] for row in resnet.tests} == {30} and "images" not in resnet.tests[1]
    write_csv(tmp_path / "rows.csv", resnet.tests)
    lines = results_table(read_csv(tmp_path / "rows.csv")).splitlines()
    assert [line.split(" | ")[6:9] for line in lines[2:]] == [
        ["20.00        ", "1.00          ", "center    "],
        ["18.50        ", "5.25          ", "multiscale"],
    ]
