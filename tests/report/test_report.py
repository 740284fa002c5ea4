import subprocess
import sys

import pytest
from conftest import ROOT
from run_dirs import make_config, write_run

from src.report.__main__ import main
from src.tables import read_csv

CSV = """\
run,config,data,model,depth,shortcut,protocol,departures,iterations,parameters,macs,train_error,test_error
resnet20-s0,c1,digits,resnet,20,A,center,,800,270000,2500000,1.5,2.5
"""


@pytest.fixture
def report(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        main()

    return run


def test_the_command_writes_results_figures_and_a_page_of_all_data_sets(report, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    errors, layers = [(45, 50)] * 3, [(1.0, 0.5)]
    write_run(runs, make_config("plain", 20), errors, final=(30, 20), layers=layers)
    write_run(runs, make_config("plain", 56), errors, final=(40, 20), layers=layers)
    write_run(runs, make_config("resnet", 20), [(60, 50)], failure="CUDA out of memory\nand more")
    write_run(runs, make_config("resnet", 56))
    write_run(runs, make_config("plain", 20, data="digits"), [(60, 50)])
    broken = write_run(runs, make_config("plain", 110), final=(1, 2))
    (broken / "summary.json").write_text("{")
    report(runs, "-o", out)
    output = capsys.readouterr()
    assert (
        "plain: 56 layers 40.00% > 20 layers 30.00% (training error), degradation: +10.00 points"
        in output.out
    )
    figures = ("cifar10", "cifar10-convergence", "cifar10-gradients", "cifar10-responses", "digits")
    names = [f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
    names += ["cifar10.csv", "cifar10-convergence.csv", "index.html"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    rows = read_csv(out / "cifar10.csv")
    assert [(row["run"], row["family"], row["test_error"]) for row in rows] == [
        ("plain20-s0", "plain", 20),
        ("plain56-s0", "plain", 20),
    ]
    assert sorted(line.replace(str(runs), "") for line in output.err.splitlines()) == [
        "not in the results, failed: /cifar10/resnet20-s0: CUDA out of memory",
        "not in the results, not started: /cifar10/resnet56-s0",
        "not in the results, unfinished: /digits/plain20-s0",
        "skipped: /cifar10/plain110-s0 cannot be read: JSONDecodeError: Expecting property name "
        "enclosed in double quotes: line 1 column 2 (char 1)",
    ]


def test_runs_on_several_data_sets_give_a_table_for_each(report, tmp_path, capsys):
    for data in ("cifar10", "digits"):
        for seed in (0, 1):
            config = make_config(data=data, seed=seed)
            write_run(tmp_path / "runs", config, [(60, 50)], final=(1, 2 + seed))
    report(tmp_path / "runs", "-o", tmp_path / "out")
    for data in ("cifar10", "digits"):
        rows = read_csv(tmp_path / "out" / f"{data}.csv")
        assert [(row["data"], row["seed"]) for row in rows] == [(data, 0), (data, 1)]
    tables = [line for line in capsys.readouterr().out.splitlines() if "test error (%)" in line]
    # That of the digits has no column for the paper, which does not have them.
    assert ["paper (%)" in line for line in tables] == [True, False]


def test_a_data_sets_name_does_not_lead_out_of_the_output_directory(report, tmp_path):
    path = write_run(tmp_path / "runs", make_config(data="digits"), [(60, 50)], final=(1, 2))
    for name in ("config.yaml", "summary.json"):
        text = (path / name).read_text()
        (path / name).write_text(text.replace("digits", "../../evil"))
    report(tmp_path / "runs", "-o", tmp_path / "out")
    suffixes = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert suffixes == [".csv", ".csv", ".html", ".png", ".svg"]


def test_a_directory_without_runs_is_an_error_of_one_line(report, tmp_path):
    with pytest.raises(SystemExit, match=f"^there is no run in {tmp_path}$"):
        report(tmp_path)


def test_tables_of_a_markdown_file_are_updated_from_files_next_to_it(report, tmp_path):
    page = tmp_path / "docs" / "results.md"
    (page.parent / "short").mkdir(parents=True)
    (page.parent / "short" / "results.csv").write_text(CSV)
    page.write_text("Before\n<!-- table: short/results.csv -->\nold\n<!-- end -->\nAfter\n")
    report("--readme", page)
    lines = page.read_text().splitlines()
    assert lines[:2] == ["Before", "<!-- table: short/results.csv -->"]
    assert lines[4].startswith(
        "| resnet20 | 20     | A        | 0.27 M     | 2.50 M        | 1.50 "
    )
    assert lines[5:] == ["<!-- end -->", "After"]


def test_a_table_of_a_markdown_file_may_have_the_rows_of_several_files(report, tmp_path):
    page = tmp_path / "results.md"
    (tmp_path / "one.csv").write_text(CSV)
    deeper = CSV.replace("resnet20", "resnet56").replace(",20,", ",56,").replace("c1", "c2")
    (tmp_path / "two.csv").write_text(deeper)
    page.write_text("<!-- table: one.csv two.csv -->\nold\n<!-- end -->\n")
    report("--readme", page)
    first, *_, one, two, last = page.read_text().splitlines()
    assert (first, last) == ("<!-- table: one.csv two.csv -->", "<!-- end -->")
    assert one.startswith("| resnet20 | 20 ")
    assert two.startswith("| resnet56 | 56 ")


def test_the_report_starts_without_torch_and_hydra():
    modules = "src.report.__main__, src.report.html, src.report.curves, src.report.layer_plots"
    code = f"import sys, {modules}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "hydra", "pytorch_lightning", "wandb", "pandas"}
    assert "src.report.html" in loaded
    assert not heavy & loaded
    assert not any(name.startswith(("src.training", "src.models", "src.tasks")) for name in loaded)
