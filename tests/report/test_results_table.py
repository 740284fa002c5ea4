import re

import pytest
from conftest import ROOT
from run_dirs import make_config, write_run

from src.report.results import read_runs
from src.report.results_table import (
    claim,
    degradation,
    fault_injection_table,
    fill_tables,
    results_table,
    short_names,
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
        "paper (%)": "8.75 (Table 6)",
        "difference": "+0.25",
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
        ["6.61 ± 0.16, best 6.43 (Table 6)", "-0.11", "as in the paper"],
    ]


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
        "degradation by 42.20 points; "
        "residual: 56 layers 24.50% < 20 layers 26.00% (training error), no degradation"
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
        "cifar10: plain: 56 layers 26.00% = 20 layers 26.00% (training error), no degradation"
    ]


def test_the_tables_in_the_readmes_are_those_of_the_committed_results():
    shown = []
    for page in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        if page.exists():
            text = page.read_text()
            files = re.findall(r"<!-- (?:table|speed|fault_injection): (\S+) -->", text)
            shown += [(page.parent / file).resolve() for file in files]
            assert fill_tables(text, page.parent) == text
    assert {*shown} == {*(ROOT / "experiments").glob("*/results.csv")}


def test_short_names_keep_the_net_and_drop_what_all_names_have():
    assert short_names(["plain20-a-b", "resnet20-a-b"]) == ["plain20", "resnet20"]
    assert short_names(["resnet20-lr1-bf16-mixed", "resnet20-lr1"]) == [
        "resnet20-bf16-mixed",
        "resnet20",
    ]
    assert short_names(["resnet20-lr1"]) == ["resnet20-lr1"]


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
