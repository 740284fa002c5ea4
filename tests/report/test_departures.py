"""What single choices are worth, as a table and as a figure."""

import json

import pytest
from run_dirs import make_config, write_run

from src.report.departure_plot import draw_departures
from src.report.departures import departure_rows, departure_table
from src.report.reading import read_runs
from src.tables import read_csv, write_csv


def write(root, name, errors, **overrides):
    """Write a finished run of ResNet-20 for each seed."""
    for seed, error in enumerate(errors):
        config = make_config(seed=seed, **overrides)
        write_run(root, config, final=(error, error), name=f"resnet20{name}-s{seed}")


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    write(root, "", [10.0, 10.2, 10.1])
    write(root, "-nesterov", [8.0, 8.3, 8.1], recipe__optimizer__nesterov=True)
    write(root, "-bf16", [10.3, 9.9, 10.2], trainer__precision="bf16-mixed")
    write(root, "-b", [12.2, 12.0, 12.1], model__shortcut="B")
    write(root, "-c", [13.0, 13.3], model__shortcut="C")
    # Not compared: another length, a single seed, and two keys at once.
    write(root, "-short", [30.0, 30.5], recipe__iterations=2000)
    write(root, "-fan_out", [5.0], model__init="he_fan_out")
    write(root, "-two", [5.0, 6.0], recipe__batch_norm_images=64, data__val_images=5000)
    return read_runs([root])[0]


def test_each_change_of_one_key_is_compared_with_the_baseline(runs):
    rows = departure_rows(runs)
    # The shortcuts B and C differ in one key as well, but the baseline has the most neighbors.
    assert [(row["change"], row["difference"], row["seeds"]) for row in rows] == [
        ("nesterov true, not false", pytest.approx(-1.9667, abs=1e-4), 3),
        ("precision bf16-mixed, not 32-true", pytest.approx(0.0333, abs=1e-4), 3),
        ("shortcut B, not A", pytest.approx(2), 3),
        ("shortcut C, not A", pytest.approx(3.05), 2),
    ]
    assert {row["baseline_seeds"] for row in rows} == {3}


def test_of_two_settings_the_one_with_fewer_changed_values_is_the_baseline(runs):
    pair = [run for run in runs if run.row["run"][:-3] in ("resnet20", "resnet20-nesterov")]
    for order in (pair, pair[::-1]):
        assert [row["change"] for row in departure_rows(order)] == ["nesterov true, not false"]


def test_the_table_words_a_difference_only_where_the_interval_excludes_zero(runs, tmp_path):
    rows = departure_rows(runs)
    table = departure_table(rows)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert cells[0] == ["residual-20", "64,000", "baseline", "10.10 ± 0.10", "-", "3", "-"]
    assert [(line[2].split()[0], line[-1]) for line in cells[1:]] == [
        ("nesterov", "lower error"),
        ("precision", "no difference shown"),
        ("shortcut", "higher error"),
        ("shortcut", "higher error"),
    ]
    # Welch's interval: 2 ± t(0.975, 4 degrees) * sqrt(2 * 0.1^2 / 3), with t = 2.7764.
    assert cells[3][4] == "+2.00 [+1.77, +2.23]"
    write_csv(tmp_path / "departures.csv", rows)
    assert departure_table(read_csv(tmp_path / "departures.csv")) == table


def test_errors_are_rounded_once(tmp_path):
    """As in the table of results: 1.075 of a CSV file with four digits would become 1.07."""
    write(tmp_path / "runs", "", [10.0, 10.2, 10.1])
    write(tmp_path / "runs", "-b", [23.85, 22.15, 24.14], model__shortcut="B")
    write_csv(tmp_path / "departures.csv", departure_rows(read_runs([tmp_path / "runs"])[0]))
    assert "| 23.38 ± 1.08 " in departure_table(read_csv(tmp_path / "departures.csv"))


def test_runs_on_several_devices_count_as_runs_with_fewer_images_per_batch_norm(tmp_path):
    write(tmp_path, "", [10.0, 10.2])
    write(tmp_path, "-b", [12.0, 12.2], model__shortcut="B")
    for seed in (2, 3):
        path = write_run(tmp_path, make_config(seed=seed), final=(50, 50))
        summary = json.loads((path / "summary.json").read_text()) | {"devices": 2}
        (path / "summary.json").write_text(json.dumps(summary))
    rows = departure_rows(read_runs([tmp_path])[0])
    assert [(row["change"], row["difference"], row["seeds"]) for row in rows] == [
        ("shortcut B, not A", pytest.approx(2), 2),
        ("batch_norm_images 64, not null", pytest.approx(39.9), 2),
    ]
    assert {row["baseline_seeds"] for row in rows} == {2}


def test_seeds_with_equal_errors_have_no_interval_and_show_no_difference(tmp_path):
    write(tmp_path, "", [10.0, 10.0])
    write(tmp_path, "-b", [12.0, 12.0], model__shortcut="B")
    rows = departure_rows(read_runs([tmp_path])[0])
    write_csv(tmp_path / "departures.csv", rows)
    for table in (departure_table(rows), departure_table(read_csv(tmp_path / "departures.csv"))):
        assert "+2.00 (no interval)" in table
        assert table.count("no difference shown") == 1


def test_the_figure_has_a_dot_with_its_interval_for_each_change(runs):
    [axis] = draw_departures(runs).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    rows = departure_rows(runs)
    assert labels == [row["change"] for row in rows]
    intervals, dots = axis.get_lines()[:-1:2], axis.get_lines()[1:-1:2]
    assert [tuple(line.get_xdata()) for line in intervals] == [(r["low"], r["high"]) for r in rows]
    assert [line.get_xdata()[0] for line in dots] == [row["difference"] for row in rows]
    assert draw_departures([run for run in runs if run.row["seed"] == 0]) is None
