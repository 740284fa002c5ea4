import json
import re

import pytest
from conftest import ROOT
from run_dirs import make_config, write_run

from src.report.reading import read_runs
from src.report.results_table import (
    fault_injection_table,
    fill_tables,
    results_table,
)
from src.tables import read_csv, write_csv


def cells(table):
    """The lines of a Markdown table, each a dict from column title to cell."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()
    )
    return [dict(zip(head, line, strict=True)) for line in lines]


def rows(path):
    return [run.row for run in read_runs([path])[0] if run.state == "finished"]


def test_seeds_are_averaged_and_compared_with_the_paper(tmp_path):
    for seed, error in enumerate((8.0, 9.0, 10.0)):
        write_run(tmp_path, make_config(seed=seed), final=(error / 2, error))
    [line] = cells(results_table(rows(tmp_path)))
    assert line == {
        "net": "resnet20",
        "layers": "20",
        "shortcut": "A",
        "parameters": "0.27 M",
        "multiply-adds": "40.52 M",
        "training error (%)": "4.50 ± 0.50",
        "test error (%)": "9.00 ± 1.00",
        "seeds": "3",
        "images per batch norm (authors: likely 64)": "128",
        "paper (%)": "8.75 (Table 6)",
        "difference": "+0.25 [-4.72, +5.22]",
        "training": "as in the paper",
    }


def test_a_run_with_other_settings_has_no_difference_from_the_paper(tmp_path):
    write_run(tmp_path, make_config(recipe__iterations=2000), final=(30, 28))
    write_run(tmp_path, make_config("plain"), final=(9, 10))
    write_run(tmp_path, make_config(depth=110), final=(0.1, 6.5))
    found = {line["net"]: line for line in cells(results_table(rows(tmp_path)))}
    columns = ("paper (%)", "difference", "training")
    assert [
        [found[net][column] for column in columns] for net in ("resnet20", "plain20", "resnet110")
    ] == [
        ["8.75 (Table 6)", "-", "2,000 of 64,000 iterations"],
        ["-", "-", "as in the paper"],
        ["6.61 ± 0.16, best 6.43 (Table 6)", "-0.11 (no interval)", "as in the paper"],
    ]


@pytest.mark.parametrize(
    ("sync", "devices", "data", "authors", "images"),
    [
        (False, 1, "cifar10", " (authors: likely 64)", "128"),
        (False, 2, "cifar10", " (authors: likely 64)", "64"),
        (True, 2, "cifar10", " (authors: likely 64)", "128 (synchronized)"),
        (False, 8, "imagenet", " (authors: 32)", "32"),
        (False, 1, "digits", "", "128"),
    ],
)
def test_the_images_that_one_batch_norm_sees_have_a_column(
    tmp_path, sync, devices, data, authors, images
):
    config = make_config(data=data, trainer__sync_batchnorm=sync)
    path = write_run(tmp_path, config, final=(4, 9))
    summary = json.loads((path / "summary.json").read_text()) | {"devices": devices}
    (path / "summary.json").write_text(json.dumps(summary))
    [line] = cells(results_table(rows(tmp_path)))
    assert line[f"images per batch norm{authors}"] == images
    if data == "cifar10":
        # A batch norm like or unlike the authors' does not hide the difference from the paper.
        assert (line["difference"], line["training"]) == ("+0.25 (no interval)", "as in the paper")


def test_a_limit_of_the_images_of_batch_norm_is_shown_and_is_no_departure(tmp_path):
    write_run(tmp_path, make_config(recipe__batch_norm_images=64), final=(4, 9))
    [line] = cells(results_table(rows(tmp_path)))
    assert line["images per batch norm (authors: likely 64)"] == "64"
    assert line["training"] == "as in the paper"


def test_a_net_without_batch_norm_has_no_images_per_batch_norm(tmp_path):
    write_run(tmp_path, make_config(model__batch_norm=False), final=(4, 9))
    [line] = cells(results_table(rows(tmp_path)))
    assert line["images per batch norm (authors: likely 64)"] == "-"


def test_seeds_whose_batch_norms_see_different_images_are_not_averaged(tmp_path):
    for seed in (0, 1):
        path = write_run(tmp_path, make_config(seed=seed), final=(4, 8 + seed))
    text = (path / "summary.json").read_text().replace('"devices": 1', '"devices": 2')
    (path / "summary.json").write_text(text)
    lines = cells(results_table(rows(tmp_path)))
    assert [line["test error (%)"] for line in lines] == ["8.00", "9.00"]


def test_runs_of_one_name_with_other_configs_are_not_averaged(tmp_path):
    write_run(tmp_path / "a", make_config(seed=0), final=(4, 8))
    write_run(tmp_path / "b", make_config(seed=1, recipe__schedule__lr=0.2), final=(6, 10))
    assert [line["test error (%)"] for line in cells(results_table(rows(tmp_path)))] == [
        "8.00",
        "10.00",
    ]


def test_data_that_the_paper_does_not_have_are_not_compared_with_it(tmp_path):
    write_run(tmp_path, make_config(data="digits", recipe__iterations=1800), final=(4, 8))
    [line] = cells(results_table(rows(tmp_path)))
    assert line["iterations"] == "1,800"
    assert not {"paper (%)", "difference", "training"} & set(line)


def test_a_table_is_the_same_from_a_csv_file(tmp_path):
    write_run(tmp_path, make_config("plain"), final=(4, 8))
    write_run(tmp_path, make_config(), final=(4, 8))
    write_csv(tmp_path / "rows.csv", rows(tmp_path))
    assert results_table(read_csv(tmp_path / "rows.csv")).replace(" ", "") == results_table(
        rows(tmp_path)
    ).replace(" ", "")


def test_the_tables_in_the_readmes_are_those_of_the_committed_results():
    shown = []
    for page in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        if page.exists():
            text = page.read_text()
            kinds = "table|detection|segmentation|localization|speed|fault_injection"
            files = " ".join(re.findall(rf"<!-- (?:{kinds}): (.+) -->", text)).split()
            shown += [(page.parent / file).resolve() for file in files]
            assert fill_tables(text, page.parent) == text
    assert {*shown} == {*(ROOT / "experiments").glob("*/results.csv")}


def test_faults_are_summed_and_those_that_could_not_be_tried_left_out():
    row = {"kind": "fault", "what": "a full disk", "tried": 2, "failed": 0, "seconds": 1.26}
    other = row | {"kind": "kill", "what": "SIGKILL", "tried": 30, "failed": 1, "seconds": 40}
    lines = fault_injection_table([row, other, row | {"what": "a GPU", "tried": 0}]).splitlines()[
        2:
    ]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["fault", "a full disk", "2", "0", "1.26"],
        ["kill", "SIGKILL", "30", "1", "40"],
        ["all", "", "32", "1", "41"],
    ]
