"""Finished runs sent afterwards by `python -m src.report --wandb`, with what compares them."""

import json

import pytest
import wandb
from fake_wandb_server import OfflineRun
from run_dirs import make_config, write_run

from src.report.results import BY_DEPTH, read_runs
from src.report.wandb_upload import complete_runs, send_to_wandb
from src.runs.run_dir import RunDir
from src.runs.wandb_identity import WandbIdentity
from src.training.callbacks.wandb import send_finished_run

pytestmark = pytest.mark.usefixtures("wandb_user")

ERRORS = [(10.0, 20.0)] * 2


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a finished run of one project."""

    def write(kind="plain", project="deep", entity=None, **config):
        logger = {"name": "wandb", "project": project, "entity": entity}
        config = make_config(kind, data="digits", **config) | {"logger": logger}
        return RunDir.open(write_run(tmp_path / project, config, ERRORS, final=(10.0, 20.0)))

    return write


@pytest.fixture
def send(tmp_path):
    return lambda **places: send_to_wandb(read_runs([tmp_path])[0], **places)


def stored(run_dir):
    return json.loads((run_dir.path / "wandb.json").read_text())


def of_type(server, kind):
    return {id: run for id, run in server.runs.items() if run["jobType"] == kind}


def test_a_run_sent_twice_is_one_run_of_one_series_and_is_not_opened_again(
    write, send, server, capsys
):
    run_dir = write()
    send()
    ((name, run),) = of_type(server, "train").items()
    assert name == stored(run_dir)["id"]
    assert [row["iteration"] for row in run["history"]] == [r["iteration"] for r in run_dir.rows()]
    assert (run["summary"]["test_error"], run["exit_code"]) == (20, 0)

    server.operations.clear()
    send()
    assert ("UpsertBucket", name) not in server.operations
    # One question for all runs, and one for the study.
    assert server.operations.count(("Runs", None)) == 2
    assert "1 of 1 runs are complete in us/deep" in capsys.readouterr().out


@pytest.mark.parametrize("lacks", [None, "a row", "its result", "its end"])
def test_a_run_is_complete_with_all_rows_its_results_and_its_end(write, server, lacks):
    run_dir = write()
    send_finished_run(run_dir)
    (run,) = server.runs.values()
    if lacks == "a row":
        run["summary"]["iteration"] = run["history"][-2]["iteration"]
    elif lacks == "its result":
        del run["summary"]["test_error"]
    elif lacks == "its end":
        run["exit_code"] = 1
    found = complete_runs("deep", "us", [run_dir])
    assert found == (set() if lacks else {run_dir.path})


def test_each_run_goes_to_its_own_project_unless_another_is_passed(write, send, server):
    first, second = write(project="one"), write("resnet", project="two", entity="team")
    send()
    places = {id: (run["entity"], run["project"]) for id, run in of_type(server, "train").items()}
    assert places == {stored(first)["id"]: ("us", "one"), stored(second)["id"]: ("team", "two")}
    assert {v["projectName"] for v in server.views.values()} == {"one", "two"}

    send(project="both", entity="group")
    runs = of_type(server, "train")
    assert {(run["entity"], run["project"]) for run in runs.values()} == {("group", "both")}
    assert stored(first) == {"entity": "group", "project": "both", "id": stored(first)["id"]}


def test_two_users_of_one_project_do_not_overwrite_each_other(write, send, server):
    first = write()
    send()
    (first.path / "wandb.json").unlink()  # a colleague's directory of the same run has none
    send()
    assert len(of_type(server, "train")) == 2
    assert {id[:12] for id in of_type(server, "train")} == {stored(first)["id"][:12]}


def test_offline_runs_are_stored_once_with_their_results(write, send, capsys):
    run_dir = write()
    for _ in range(2):
        send()
    offline = OfflineRun(run_dir.path)
    assert offline.rows == run_dir.rows()
    assert offline.exit_codes == [0]
    assert (offline.config["family"], offline.config["depth"]) == ("plain", 20)
    assert offline.summary["test_error"] == 20
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("W&B is offline (as requested): run python -m src.report --wandb")


def test_without_an_entity_the_message_names_the_key(write, send, server):
    write()
    server.default_entity = None
    with pytest.raises(SystemExit, match="set logger.entity=TEAM"):
        send()


def test_a_report_that_the_server_refuses_says_why(write, send, server):
    write(entity="us")
    server.rejects_keys = True
    with pytest.raises(SystemExit, match="^W&B did not accept the report: "):
        send()
    wandb.teardown()


def test_a_study_draws_a_line_for_each_family_and_is_updated(write, send, server):
    for kind in ("plain", "resnet"):
        for depth in (20, 56):
            write(kind, depth=depth)
    for _ in range(2):
        send()
    (study,) = of_type(server, "study").values()
    assert study["displayName"] == "study"
    charts = json.loads(study["config"])["_wandb"]["value"]["visualize"]
    assert charts.keys() == {f"depth/{key}" for key in BY_DEPTH}
    assert {chart["panel_config"]["panelDefId"] for chart in charts.values()} == {
        "wandb/lineseries/v0"
    }
    (table,) = {text for path, text in server.uploads.items() if "depth/test_error" in path}
    assert sorted(map(tuple, json.loads(table)["data"])) == [
        (20, "digits, plain", 20.0),
        (20, "digits, residual", 20.0),
        (56, "digits, plain", 20.0),
        (56, "digits, residual", 20.0),
    ]


def test_the_identity_of_a_sent_run_is_that_of_its_next_start(write, send, server):
    run_dir = write()
    send()
    assert WandbIdentity.of(run_dir) == WandbIdentity("us", "deep", stored(run_dir)["id"])
