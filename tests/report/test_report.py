import subprocess
import sys

from conftest import ROOT
from run_dirs import make_config, write_run

from src.report.results import read_csv


def report(*arguments):
    command = [sys.executable, "-m", "src.report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_writes_results_figures_and_a_page_for_all_data(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs, make_config("plain", 20), [(60, 50)], final=(30, 20), layers=[(1.0, 0.5)])
    write_run(runs, make_config("plain", 56), [(60, 50)], final=(40, 20), layers=[(1.0, 0.5)])
    write_run(runs, make_config("resnet", 20), [(60, 50)], failure="CUDA out of memory\nand more")
    write_run(runs, make_config("resnet", 56))
    write_run(runs, make_config("plain", 20, data="digits"), [(60, 50)])
    broken = write_run(runs, make_config("plain", 110), final=(1, 2))
    (broken / "summary.json").write_text("{")
    done = report(runs, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert (
        "plain: 56 layers 40.00% > 20 layers 30.00% (training error), degradation by 10.00 points"
        in done.stdout
    )
    names = [
        f"cifar10{name}.{suffix}"
        for name in ("", "-gradients", "-responses")
        for suffix in ("png", "svg")
    ]
    names += ["cifar10.csv", "digits.png", "digits.svg", "index.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    rows = read_csv(tmp_path / "out/cifar10.csv")
    assert [(row["run"], row["family"], row["test_error"]) for row in rows] == [
        ("plain20-s0", "plain", 20),
        ("plain56-s0", "plain", 20),
    ]
    told = sorted(line.replace(str(runs), "") for line in done.stderr.splitlines())
    assert told == [
        "left out: /cifar10/plain110-s0 cannot be read: JSONDecodeError: Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)",
        "not in the results, failed: /cifar10/resnet20-s0: CUDA out of memory",
        "not in the results, not started: /cifar10/resnet56-s0",
        "not in the results, unfinished: /digits/plain20-s0",
    ]


def test_a_name_of_data_does_not_lead_out_of_the_folder(tmp_path):
    folder = write_run(tmp_path / "runs", make_config(data="digits"), [(60, 50)], final=(1, 2))
    for name in ("config.yaml", "summary.json"):
        (folder / name).write_text((folder / name).read_text().replace("digits", "../../evil"))
    assert report(tmp_path / "runs", "-o", tmp_path / "out").returncode == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [
        ".csv",
        ".html",
        ".png",
        ".svg",
    ]


def test_no_run_is_an_error_of_one_line(tmp_path):
    done = report(tmp_path)
    assert (done.returncode, done.stderr) == (1, f"there is no run in {tmp_path}\n")


def test_the_report_starts_without_torch_and_hydra():
    code = "import sys, src.report.__main__, src.report.html, src.report.curves, src.report.layer_plots; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "src.report.html" in loaded
    heavy = {
        "torch",
        "hydra",
        "pytorch_lightning",
        "src.train",
        "src.tasks.classification",
        "src.models",
        "wandb",
        "pandas",
    }
    assert not heavy & set(loaded)
