import json
import socket

import pytest
from run_dirs import make_config, write_run

from src.report.figures import styles
from src.report.reading import read_runs
from src.report.wandb_workspace import GROUP_BY, make_workspace, save_workspace
from src.runs.naming import run_name
from src.runs.run_dir import RunDir
from src.training.wandb_init import flat_config

pytestmark = pytest.mark.usefixtures("wandb_user")

ERRORS = [(10.0, 20.0)] * 8


@pytest.fixture
def runs(tmp_path):
    """Two nets of 20 layers, one of them with two seeds, and a short run of one of these nets."""
    short = make_config("plain", recipe__iterations=2000)
    for config in (
        make_config("plain"),
        make_config("resnet"),
        make_config("resnet", seed=1),
        short,
    ):
        name = run_name(RunDir(tmp_path, config).key)
        write_run(tmp_path, config, ERRORS, final=(10.0, 20.0), name=name)
    return read_runs([tmp_path])[0]


def spec_of(view):
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))[
        "section"
    ]


def test_a_workspace_is_made_without_a_network_and_draws_each_measure_once(monkeypatch, runs):
    def refuse(*_):
        raise AssertionError("this needs no network")

    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (section,) = spec_of(make_workspace("deep", "us", runs))["panelBankConfig"]["sections"]
    panels = [panel["config"] for panel in section["panels"]]
    assert [(c["chartTitle"], c["metrics"]) for c in panels] == [
        ("training error (%)", ["train/error"]),
        ("test or validation error (%)", ["test/error", "val/error"]),
        ("training loss", ["train/loss"]),
        ("learning rate", ["lr"]),
    ]
    assert {panel["xAxis"] for panel in panels} == {"iteration"}
    assert {panel["viewType"] for panel in section["panels"]} == {"Run History Line Plot"}


def test_error_panels_share_a_range_and_nothing_is_smoothed(runs):
    (section,) = spec_of(make_workspace("deep", "us", runs))["panelBankConfig"]["sections"]
    panels = [panel["config"] for panel in section["panels"]]
    assert [(c.get("yAxisMin"), c.get("yAxisMax")) for c in panels[:2]] == [(0, 22.5)] * 2
    assert not [c for c in panels[2:] if "yAxisMax" in c]
    assert {c["smoothingType"] for c in panels} == {"none"}
    assert {(c["groupAgg"], c["groupArea"]) for c in panels} == {("mean", "minmax")}


def test_runs_are_grouped_by_data_and_curve_and_the_study_is_left_out(runs):
    (run_set,) = spec_of(make_workspace("deep", "us", runs))["runSets"]
    assert [(key["section"], key["name"]) for key in run_set["grouping"]] == [
        ("config", "data.value"),
        ("config", "curve.value"),
    ]
    flat = flat_config(RunDir(runs[0].path, runs[0].config), 20)
    assert set(GROUP_BY) <= flat.keys()
    (filters,) = [f for f in leaves(run_set["filters"]) if f.get("key")]
    assert (filters["key"]["section"], filters["key"]["name"]) == ("run", "jobType")
    assert filters["value"] == "train"


def leaves(filters):
    inner = filters.get("filters") or []
    return [leaf for part in inner for leaf in leaves(part)] if inner else [filters]


def test_a_group_has_the_color_of_the_figures_and_its_seeds_are_one_group(runs):
    workspace = make_workspace("deep", "us", runs)
    colors = {tuple(path): c for path, c in workspace.runset_settings.group_colors.items()}
    assert colors == {
        ("cifar10", run.path.name.removesuffix(f"-s{run.row['seed']}")): style.color
        for run, style in zip(runs, styles(runs), strict=True)
    }
    assert len(colors) == len(set(colors.values())) == 3
    assert sorted(spec_of(workspace)["customRunColors"].values()) == sorted(colors.values())


def test_a_workspace_that_is_saved_again_is_replaced(server, runs):
    urls = {save_workspace("deep", "us", runs) for _ in range(2)}
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["type"]) == ("us", "deep", "project-view")
    assert json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [url.startswith(f"{server.url}/us/deep?nw=") for url in urls] == [True]
