import json
import socket

import pytest
import wandb
from fake_wandb_server import Offline

from src.report.panels import PANELS
from src.report.wandb_workspace import GROUPS, save, send, workspace
from src.runs.run_dir import COLUMNS
from src.training.callbacks.wandb import flat_config, run_id

pytestmark = pytest.mark.usefixtures("wandb_user")


def spec_of(view):
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))[
        "section"
    ]


def test_a_workspace_is_built_without_a_network_and_draws_each_panel_once(monkeypatch):
    def refuse(*_):
        raise AssertionError("this needs no network")

    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    sections = spec_of(workspace("deep", "us"))["panelBankConfig"]["sections"]
    drawn = [panel for section in sections for panel in section["panels"]]
    assert sorted(panel["config"]["chartTitle"] for panel in drawn) == sorted(
        panel.title for panel in PANELS
    )
    lines = [panel["config"] for panel in drawn if panel["viewType"] == "Run History Line Plot"]
    points = [panel["config"] for panel in drawn if panel["viewType"] == "Scatter Plot"]
    assert [(config["xAxis"], config["metrics"]) for config in lines] == [
        ("iteration", [panel.value]) for panel in PANELS if panel.over == "iteration"
    ]
    assert [(config["xAxis"], config["yAxis"]) for config in points] == [
        ("config:depth.value", f"summary:{panel.value}")
        for panel in PANELS
        if panel.over == "depth"
    ]
    assert len(lines) + len(points) == len(PANELS)


def test_runs_are_grouped_by_keys_that_their_configs_have(find):
    (runs,) = spec_of(workspace("deep", "us"))["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("config", f"{name}.value") for name in ("data", "family", "depth", "shortcut")
    ]
    assert set(GROUPS) <= flat_config(find("n=1").config, "residual", 8).keys()


def test_every_panel_has_what_it_draws_in_a_run_that_was_sent(tiny):
    folder = tiny("data.val_images=97")
    send([(folder, "residual")], "deep", None)
    run = Offline(folder.path)
    assert run.rows == folder.rows()
    assert run.exit_codes == [0]
    assert (run.config["family"], run.config["depth"]) == ("residual", 8)
    logged = {name for row in run.rows for name in row}
    logged |= {"test/error"}  # a run that holds images out for validation tests once, at its end
    for panel in PANELS:
        if panel.over == "iteration":
            assert panel.value in COLUMNS and panel.value in logged, panel
        else:
            assert run.summary[panel.value] == folder.summary[panel.value], panel


@pytest.fixture
def finished(find):
    folder = find("n=1", "model=plain")
    folder.path.mkdir(parents=True)
    for iteration in (10, 20, 30):
        folder.log({"iteration": iteration, "lr": 0.1, "train/loss": 1 / iteration})
    folder.finish({"depth": 8, "test_error": 12.5})
    return folder


def test_a_run_sent_twice_is_one_run_of_one_series(finished, server):
    for _ in range(2):
        send([(finished, "plain")], "deep", None)
    assert list(server.runs) == [run_id(finished.config)]
    (run,) = server.runs.values()
    assert [(row["iteration"], row["_step"]) for row in run["history"]] == [
        (10, 0),
        (20, 1),
        (30, 2),
    ]
    assert (run["summary"]["test_error"], run["exit_code"]) == (12.5, 0)


def test_a_run_sent_twice_offline_lies_there_once(finished):
    for _ in range(2):
        send([(finished, "plain")], "deep", None)
    assert Offline(finished.path).rows == finished.rows()


def test_a_workspace_that_is_saved_again_is_replaced(server, capsys):
    save("deep", None)
    save("deep", "us")
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["type"]) == ("us", "deep", "project-view")
    assert [
        section["name"]
        for section in json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    ]
    assert capsys.readouterr().out.count(f"the workspace is at {server.url}/us/deep?nw=") == 2


def test_a_workspace_that_cannot_be_saved_says_why(server, monkeypatch, capsys):
    server.refuses = True
    with pytest.raises(SystemExit, match="^W&B did not take the workspace: "):
        save("deep", "us")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    save("deep", "us")
    assert not server.views
    assert capsys.readouterr().out.startswith("W&B is offline (as asked for): ")
