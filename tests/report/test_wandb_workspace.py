import json
import socket

import pytest
import wandb
from fake_wandb_server import OfflineRun

from src.report.results import BY_DEPTH, CURVES
from src.report.wandb_workspace import GROUP_BY, make_workspace, save_workspace, send_runs
from src.training.callbacks.wandb import flat_config, run_id

pytestmark = pytest.mark.usefixtures("wandb_user")


def spec_of(view):
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))[
        "section"
    ]


def test_a_workspace_is_made_without_a_network_and_draws_each_measure_once(monkeypatch):
    def refuse(*_):
        raise AssertionError("this needs no network")

    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    sections = spec_of(make_workspace("deep", "us"))["panelBankConfig"]["sections"]
    iterations, depth = ([panel["config"] for panel in x["panels"]] for x in sections)
    assert [(c["chartTitle"], c["xAxis"], c["metrics"]) for c in iterations] == [
        (title, "iteration", [column]) for column, title in CURVES.items()
    ]
    assert [(c["chartTitle"], c["xAxis"], c["yAxis"]) for c in depth] == [
        (title, "config:depth.value", f"summary:{key}") for key, title in BY_DEPTH.items()
    ]


def test_runs_are_grouped_by_keys_that_their_configs_have(find):
    (runs,) = spec_of(make_workspace("deep", "us"))["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("config", f"{name}.value") for name in ("data", "family", "depth", "shortcut")
    ]
    assert set(GROUP_BY) <= flat_config(find("n=1").config, 8).keys()


@pytest.fixture
def finished(find):
    run_dir = find("n=1", "model=plain")
    run_dir.path.mkdir(parents=True)
    for iteration in (10, 20, 30):
        row = {"iteration": iteration, "lr": 0.1, "train/loss": 1 / iteration}
        run_dir.append_metrics(list(row), row)
    run_dir.write_summary({"depth": 8, "test_error": 12.5})
    return run_dir


def test_a_run_sent_twice_is_one_run_of_one_series(finished, server):
    for _ in range(2):
        send_runs([finished], "deep", None)
    assert list(server.runs) == [run_id(finished)]
    (run,) = server.runs.values()
    assert [(row["iteration"], row["_step"]) for row in run["history"]] == [
        (10, 0),
        (20, 1),
        (30, 2),
    ]
    assert (run["summary"]["test_error"], run["exit_code"]) == (12.5, 0)


def test_a_run_sent_twice_offline_is_stored_once_with_its_results(finished):
    for _ in range(2):
        send_runs([finished], "deep", None)
    offline = OfflineRun(finished.path)
    assert offline.rows == finished.rows()
    assert offline.exit_codes == [0]
    assert (offline.config["family"], offline.config["depth"]) == ("plain", 8)
    assert offline.summary["test_error"] == 12.5


def test_a_workspace_that_is_saved_again_is_replaced(server, capsys):
    save_workspace("deep", None)
    save_workspace("deep", "us")
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["type"]) == ("us", "deep", "project-view")
    assert [
        section["name"]
        for section in json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    ]
    assert capsys.readouterr().out.count(f"the workspace is at {server.url}/us/deep?nw=") == 2


def test_a_workspace_that_cannot_be_saved_says_why(server, monkeypatch, capsys):
    server.rejects_keys = True
    with pytest.raises(SystemExit, match="^W&B did not accept the workspace: "):
        save_workspace("deep", "us")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    save_workspace("deep", "us")
    assert not server.views
    assert capsys.readouterr().out.startswith("W&B is offline (as requested): ")
