import json
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from src.report.results import read_csv, read_runs, write_csv
from src.report.table import fill_in, results_table

SUMMARY = {"model": "plain", "n": 1, "depth": 8, "shortcut": None, "data": "digits", "val_images": 0, "iterations": 8}
SUMMARY |= {"parameters": 75290, "test_error_top5": 1.0, "versions": {"torch": "2.13.0"}, "device": "AMD, 2 cores"}


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder as src.train does, finished or not."""

    def make(name, family="plain", finished=True, **values):
        folder = tmp_path / "runs" / "digits" / name
        folder.mkdir(parents=True)
        config = {"model": {"_target_": f"src.models.residual.{family}"}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "metrics.csv").write_text("iteration,train/error,test/error\n4,60,50\n6,,\n8,30,20\n")
        if finished:
            (folder / "summary.json").write_text(json.dumps(SUMMARY | {"seed": 0} | values))
        return folder

    return make


def test_runs_are_read_and_unfinished_ones_told_apart(make_run, tmp_path):
    make_run("plain8-s0", train_error=30.0, test_error=20.0)
    make_run("resnet8-s0", "resnet", train_error=3.0, test_error=2.0, shortcut="A")
    unfinished = make_run("resnet8-s1", "resnet", finished=False)
    runs, left_out = read_runs([tmp_path])
    assert [(run.row["run"], run.row["family"]) for run in runs] == [("plain8-s0", "plain"), ("resnet8-s0", "residual")]
    assert left_out == [unfinished]
    assert runs[0].metrics[-1] == {"iteration": 8, "train/error": 30, "test/error": 20}
    assert "test/error" not in runs[0].metrics[1]


def test_seeds_of_one_run_are_averaged_and_other_runs_are_not(make_run, tmp_path):
    for seed, error in enumerate((20.0, 22.0, 27.0)):
        make_run(f"plain8-s{seed}", train_error=error + 10, test_error=error, seed=seed)
    make_run("plain8-lr0.2-s0", train_error=1.0, test_error=1.5)
    lines = results_table([run.row for run in read_runs([tmp_path])[0]]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2:] == [
        ["plain8-lr0.2", "8", "-", "75,290", "8", "1.00", "1.50", "1"],
        ["plain8", "8", "-", "75,290", "8", "33.00 ± 3.61", "23.00 ± 3.61", "3"],
    ]


def test_rows_survive_a_csv_file(make_run, tmp_path):
    make_run("plain8-s0", train_error=30.0, test_error=20.25)
    rows = [run.row for run in read_runs([tmp_path])[0]]
    write_csv(tmp_path / "rows.csv", rows)
    again = read_csv(tmp_path / "rows.csv")
    assert [{k: v for k, v in row.items() if v is not None} for row in rows] == [
        {k: v for k, v in row.items() if v != ""} for row in again
    ]
    assert results_table(again) == results_table(rows)


def test_the_command_writes_a_table_and_a_figure_of_both_families(make_run, tmp_path):
    make_run("plain8-s0", train_error=30.0, test_error=20.0)
    make_run("resnet14-s0", "resnet", train_error=3.0, test_error=2.0, depth=14, shortcut="A")
    make_run("resnet14-s1", "resnet", finished=False)
    command = [sys.executable, "-m", "src.report", str(tmp_path / "runs"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "plain8" in done.stdout
    assert re.search(r"left out, as it is not finished: .*resnet14-s1", done.stderr)
    figure = (tmp_path / "out/digits.svg").read_text()
    for words in ("plain nets", "residual nets", "8 layers", "14 layers", "iterations", "error (%)"):
        assert words in figure
    assert (tmp_path / "out/digits.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_csv(tmp_path / "out/digits.csv")) == 2


def test_no_finished_run_is_an_error_of_one_line(tmp_path):
    command = [sys.executable, "-m", "src.report", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"there is no finished run in {tmp_path}\n")


def test_the_tables_in_readme_are_those_of_the_measured_results():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"<!-- (?:table|speed): (\S+) -->", text)
    assert named
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments").glob("*.csv"))
    assert fill_in(text, ROOT) == text
