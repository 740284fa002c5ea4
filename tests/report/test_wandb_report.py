"""The report as wandb-workspaces serializes it."""

import json

import pytest
from run_dirs import make_config, write_run

from src.report.curves import draw_curves
from src.report.differences import claim, degradation
from src.report.figures import error_limit, styles
from src.report.reading import read_runs
from src.report.results_table import results_table
from src.report.wandb_report import make_report
from src.report.wandb_study import depth_charts
from src.runs.naming import curve_name
from src.runs.run_dir import RunDir

pytestmark = pytest.mark.usefixtures("wandb_user")

QUOTED = 'it\'s "data"'


@pytest.fixture
def runs(tmp_path):
    """Plain and residual nets of two depths."""
    for kind, increase in (("plain", 20), ("resnet", -1)):
        for depth in (20, 56):
            final = (10.0 + increase * (depth == 56), 20.0)
            config = make_config(kind, depth)
            write_run(tmp_path, config, [(30.0, 40.0)] * 8, final=final, layers=[(1.0, 0.5)])
    return read_runs([tmp_path])[0]


@pytest.fixture
def blocks(server, runs):
    """Return a function that lists the blocks of a report: their type, text and grid."""
    server.projects.add("deep")

    def blocks(runs=runs):
        charts = depth_charts(runs)
        for key, chart in charts.items():
            chart.set_key(key)  # as logging does
        model = make_report("deep", "us", runs, charts)._to_model()
        spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
        return [
            (
                block["type"],
                block.get("content") or block["children"][0]["text"],
                block.get("metadata"),
            )
            for block in spec["blocks"]
        ]

    return blocks


def grids(blocks):
    return [grid for kind, _, grid in blocks if kind == "panel-grid"]


def panels(grid):
    return grid["panelBankSectionConfig"]["panels"]


def filters(grid):
    (run_set,) = grid["runSets"]
    return {f["key"]["section"] + ":" + f["key"]["name"]: f["value"] for f in leaves(run_set)}


def leaves(run_set):
    parts = run_set["filters"]["filters"]
    assert {(part["op"], part.get("connector", "AND")) for part in parts} == {("=", "AND")}
    return parts


def test_the_claim_the_facts_and_the_table_are_those_of_the_terminal_and_the_page(blocks, runs):
    texts = [text for _, text, _ in blocks() if text]
    rows = [row for run in runs for row in run.evaluations]
    expected = ["cifar10", *claim(runs), *degradation(runs), results_table(rows)]
    assert texts[: len(expected)] == expected
    assert "6.97 ± 0.00" not in expected[-1]
    assert "| 10.00 " in expected[-1]
    assert "8.75 (Table 6)" in expected[-1]  # the paper's ResNet-20


def test_the_sections_come_in_order(blocks):
    assert [(kind, text) for kind, text, _ in blocks() if kind in ("heading", "panel-grid")] == [
        ("heading", "cifar10"),
        ("heading", "Error against iterations"),
        ("panel-grid", ""),
        ("heading", "plain nets"),
        ("panel-grid", ""),
        ("heading", "residual nets"),
        ("panel-grid", ""),
        ("heading", "Responses of the layers"),
        ("panel-grid", ""),
        ("heading", "Error against depth"),
        ("panel-grid", ""),
    ]


def test_plain_and_residual_nets_have_a_grid_each_with_one_range(blocks, runs):
    _, plain, residual, *_ = grids(blocks())
    for grid, family in ((plain, "plain"), (residual, "residual")):
        assert filters(grid) == {
            "run:jobType": "train",
            "config:data.value": "cifar10",
            "config:family.value": family,
        }
        grouping = [(key["section"], key["name"]) for key in grid["runSets"][0]["grouping"]]
        assert grouping == [("config", "data.value"), ("config", "curve.value")]
        configs = [panel["config"] for panel in panels(grid)]
        assert [config["metrics"] for config in configs] == [
            ["train/error"],
            ["test/error", "val/error"],
        ]
        assert {(config["yAxisMin"], config["yAxisMax"]) for config in configs} == {
            (0, error_limit(runs))
        }
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels(grid)]
        assert places == [(0, 0), (12, 0)]


def test_the_curves_have_the_colors_of_the_figures(blocks, runs):
    _, plain, *_ = grids(blocks())
    (run_set,) = plain["runSets"]
    assert plain["customRunColors"] == {
        f"{run_set['id']}-config:data.value:cifar10-config:curve.value:"
        f"{curve_name(RunDir(run.path, run.config).key)}": style.color
        for run, style in zip(runs, styles(runs), strict=True)
    }


def test_figures_and_charts_are_those_that_the_study_logs(blocks, runs):
    figure, _, _, responses, depth = grids(blocks())
    for grid in (figure, responses, depth):
        assert filters(grid) == {"run:jobType": "study"}
    keys = [panel["config"]["mediaKeys"] for grid in (figure, responses) for panel in panels(grid)]
    assert keys == [["figures/cifar10"], ["figures/cifar10-responses"]]
    assert draw_curves(runs)

    shown = [panel["config"] for panel in panels(depth)]
    assert [config["stringSettings"]["title"] for config in shown] == [
        "training error by depth (%)",
        "test error by depth (%)",
    ]
    for config, chart in zip(shown, depth_charts(runs).items(), strict=False):
        key, chart = chart
        chart.set_key(key)
        logged = chart.spec.config_value["panel_config"]
        (query,) = config["userQuery"]["queryFields"]
        query["args"] = [argument for argument in query["args"] if argument["name"] != "limit"]
        assert config == logged


def test_a_name_with_quotes_selects_its_own_runs(blocks, runs):
    for run in runs:
        run.row["data"] = QUOTED
    _, plain, *_ = grids(blocks())
    assert filters(plain)["config:data.value"] == QUOTED


def test_a_report_without_layer_statistics_has_no_empty_section(blocks, runs):
    for run in runs:
        run.layers = []
    assert "Responses of the layers" not in [text for _, text, _ in blocks()]
