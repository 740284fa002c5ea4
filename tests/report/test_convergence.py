"""When nets converge, as a table and as a figure."""

import math

import pytest
from run_dirs import make_config, write_run

from src.report.convergence import convergence_rows, convergence_table, first_below
from src.report.convergence_plot import draw_convergence
from src.report.reading import read_runs
from src.tables import read_csv, write_csv


def write(root, kind, depth, seed, errors, finished=True):
    config = make_config(kind, depth, seed)
    # Evaluations at 8,000, 16,000, ... iterations.
    write_run(
        root, config, [(e, e) for e in errors], final=(1, 1) if finished else None,
        name=f"{kind}{depth}-s{seed}",
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    write(tmp_path, "plain", 20, 0, [60, 40, 40, 40, 10, 10])
    write(tmp_path, "plain", 20, 1, [60, 60, 60, 40, 40, 40])
    write(tmp_path, "plain", 56, 0, [90, 90, 90, 90, 40, 40])
    write(tmp_path, "resnet", 20, 0, [40, 10, 4, 4, 4, 4])
    write(tmp_path, "resnet", 56, 0, [40, 40, 40, 10, 10, 10], finished=False)
    return read_runs([tmp_path])[0]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([60, 40, 40, 40], 16000),
        ([40, 60, 40, 40, 40], 24000),  # a single evaluation below it does not count
        ([40, 40, 60, 40, 40], None),
        ([60, 50, 40, 40], None),  # at the threshold is not below it
        ([], None),
    ],
)
def test_three_evaluations_in_a_row_have_to_be_below_the_threshold(tmp_path, errors, expected):
    write(tmp_path, "plain", 20, 0, errors, finished=False)
    [run] = read_runs([tmp_path])[0]
    assert first_below(run, 50) == expected


def test_the_table_has_mean_and_std_over_the_seeds_that_got_there(runs, tmp_path):
    rows = convergence_rows(runs)
    table = convergence_table(rows)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == ["net", "layers", "below 50%", "below 20%", "below 5%", "seeds"]
    assert cells[2:] == [
        ["plain20", "20", "24,000 ± 11,314", "never", "never", "2"],
        ["plain56", "56", "never", "never", "never", "1"],
        ["resnet20", "20", "8,000", "16,000", "24,000", "1"],
    ]
    write_csv(tmp_path / "convergence.csv", rows)
    assert convergence_table(read_csv(tmp_path / "convergence.csv")) == table


def test_the_table_says_how_many_seeds_got_below_a_threshold(tmp_path):
    write(tmp_path, "plain", 20, 0, [60, 40, 40, 40])
    write(tmp_path, "plain", 20, 1, [90, 90, 90, 90])
    assert "16,000 (1 of 2)" in convergence_table(convergence_rows(read_runs([tmp_path])[0]))


def test_the_figure_has_a_line_of_means_by_depth_for_each_kind_of_net(runs):
    figure = draw_convergence(runs)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"training error below {threshold}%" for threshold in (50, 20, 5)]
    plain, residual = figure.axes[0].get_lines()
    assert list(plain.get_xdata()) == [20, 56]
    first, last = plain.get_ydata()
    assert first == 24000
    assert math.isnan(last)
    # One depth of the residual nets is finished.
    assert (list(residual.get_xdata()), list(residual.get_ydata())) == ([20], [8000])
    assert draw_convergence([run for run in runs if run.row["depth"] == 20]) is None


def test_the_figure_leaves_out_a_threshold_that_no_run_reaches(runs, tmp_path):
    plain = [run for run in runs if run.row["family"] == "plain"]
    (axis,) = draw_convergence(plain).axes
    assert axis.get_title() == "training error below 50%"
    write(tmp_path / "never", "plain", 20, 0, [90, 80, 70, 60])
    write(tmp_path / "never", "plain", 56, 0, [90, 80, 70, 60])
    assert draw_convergence(read_runs([tmp_path / "never"])[0]) is None
