"""Finished runs sent afterwards by `python -m src.report --wandb`, with what compares them."""

import json
from urllib.parse import unquote

import pytest
import wandb
from fake_wandb_server import OfflineRun
from run_dirs import make_config, write_run

from src.report.grouping import group_seeds
from src.report.reading import read_runs
from src.report.results import BY_DEPTH
from src.report.results_table import results_lines
from src.report.wandb_upload import complete_runs, send_sweep, send_to_wandb
from src.runs.run_dir import RunDir
from src.runs.wandb_identity import WandbIdentity
from src.training.callbacks.wandb import send_finished_run

pytestmark = pytest.mark.usefixtures("wandb_user")

ERRORS = [(10.0, 20.0)] * 2


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a finished run of one project."""

    def write(kind="plain", project="deep", entity=None, **config):
        logger = {"wandb": {"project": project, "entity": entity}}
        config = make_config(kind, data="digits", **config) | {"logger": logger}
        return RunDir.open(write_run(tmp_path / project, config, ERRORS, final=(10.0, 20.0)))

    return write


@pytest.fixture
def send(tmp_path):
    return lambda **places: send_to_wandb(read_runs([tmp_path])[0], **places)


@pytest.fixture
def no_study(monkeypatch):
    """Save no study and no report, which takes seconds."""
    monkeypatch.setattr("src.report.wandb_upload.save_study", lambda *_: ("nowhere", "nowhere"))


def stored(run_dir):
    return json.loads((run_dir.path / "wandb.json").read_text())


def of_type(server, kind):
    return {id: run for id, run in server.runs.items() if run["jobType"] == kind}


@pytest.mark.usefixtures("no_study")
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
    assert server.operations.count(("Runs", None)) == 1  # question for all runs
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


@pytest.mark.usefixtures("no_study")
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


@pytest.mark.usefixtures("no_study")
def test_two_users_of_one_project_do_not_overwrite_each_other(write, send, server):
    first = write()
    send()
    (first.path / "wandb.json").unlink()  # a colleague's directory of the same run has none
    send()
    assert len(of_type(server, "train")) == 2
    assert {id[:12] for id in of_type(server, "train")} == {stored(first)["id"][:12]}


def test_offline_runs_are_stored_once_with_their_results(write):
    run_dir = write()
    for _ in range(2):
        send_finished_run(run_dir)
    offline = OfflineRun(run_dir.path)
    assert offline.rows == run_dir.rows()
    assert offline.exit_codes == [0]
    assert (offline.config["family"], offline.config["depth"]) == ("plain", 20)
    assert offline.summary["test_error"] == 20


def test_offline_one_message_has_the_command_to_run_later(write, send, capsys):
    send()  # nothing, so nothing is left for later
    run_dir = write()
    write("resnet", project="a b")
    send(entity="team")
    places = f"'{run_dir.path.parents[2] / 'a b' / 'digits'}' {run_dir.path.parent}"
    assert capsys.readouterr().out == (
        "W&B is offline (as requested); once it is online, python -m src.report --wandb "
        f"--entity=team {places} sends the runs and saves what compares them\n"
    )
    assert not (run_dir.path / "wandb").exists()


def test_without_an_entity_the_message_names_the_key(write, send, server):
    write()
    server.default_entity = None
    with pytest.raises(SystemExit, match="set logger.wandb.entity=TEAM"):
        send()


def test_a_report_that_the_server_refuses_says_why(write, send, server):
    write(entity="us")
    server.rejects_keys = True
    with pytest.raises(SystemExit, match="^W&B did not accept the report: "):
        send()
    wandb.teardown()


@pytest.mark.slow
def test_a_study_and_a_report_compare_the_runs_and_are_updated(write, send, server, capsys):
    for kind in ("plain", "resnet"):
        for depth in (20, 56):
            write(kind, depth=depth)
    send()
    first = capsys.readouterr().out.splitlines()[-3:]
    send()
    assert capsys.readouterr().out.splitlines()[-3:] == first
    ((id, study),) = of_type(server, "study").items()
    assert first[1] == f"the study is at {server.url}/us/deep/runs/{id}"
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
    (report,) = (view for view in server.views.values() if view["type"] == "runs")
    assert first[2] == f"the report is at {study['summary']['report']}"
    assert first[2].endswith(f"--{report['id']}")
    assert json.loads(report["spec"])["blocks"]

    del server.views[report["id"]]  # by a user
    send()
    assert capsys.readouterr().out.splitlines()[-1] != first[2]
    assert len(of_type(server, "study")) == 1


@pytest.mark.slow
def test_a_study_has_the_table_the_figures_the_page_and_the_report_directory(
    write, send, server, tmp_path
):
    write(), write("resnet")
    send()
    (study,) = of_type(server, "study").values()
    assert study["exit_code"] == 0
    summary = study["summary"]
    assert {key: summary[key]["_type"] for key in summary if key.startswith("figures/")} == {
        "figures/digits": "image-file"
    }
    uploaded = {unquote(path).lstrip("/"): content for path, content in server.uploads.items()}
    assert uploaded[summary["figures/digits"]["path"]].startswith(b"\x89PNG")
    table = json.loads(uploaded[summary["results/digits"]["path"]])
    rows = [row for run in read_runs([tmp_path])[0] for row in run.evaluations]
    (first, *_) = lines = results_lines(group_seeds(rows))
    assert table["columns"] == list(first)
    assert table["data"] == [list(line.values()) for line in lines]
    page = uploaded[summary["page"]["path"]].decode()
    assert "<td" in page
    assert "normalize.css" not in page
    (artifact,) = (a for a in server.artifacts if a["artifactTypeName"] == "report")
    assert artifact["artifactCollectionName"] == "report"


@pytest.mark.usefixtures("no_study")
def test_a_project_is_created_before_anything_is_sent_there(write, send, server):
    write()
    for _ in range(2):
        send()
    operations = [operation for operation, _ in server.operations]
    assert operations.count("CreateProject") == 1
    assert operations.index("CreateProject") < operations.index("UpsertBucket")


def test_a_sweep_saves_its_project_with_the_runs_that_are_there_and_no_others(
    write, send, server, capsys, tmp_path
):
    earlier, local = write(depth=56), write("resnet", depth=56)
    unfinished = RunDir.open(write_run(tmp_path / "deep", make_config("plain", 32, data="digits")))
    other = write("resnet", project="other")
    send_finished_run(earlier)
    send_finished_run(other)
    now = write()
    for run_dir in (now, unfinished):
        # As the command line makes it, whatever logger the stored config has.
        run_dir.config |= {"output_dir": str(tmp_path)}
        run_dir.config |= {"logger": {"wandb": {"project": "deep", "entity": None}}}
    send_sweep([now, unfinished])
    output = capsys.readouterr().out
    assert "1 of 2 runs are complete in us/deep" in output
    for what in ("workspace", "study", "report"):
        assert f"the {what} is at {server.url}/us/deep" in output
    assert f"{server.url}/us/other" not in output.partition("are complete")[2]
    assert stored(now)["entity"] == "us"
    assert not (local.path / "wandb.json").exists()
    (table,) = (text for path, text in server.uploads.items() if "depth/test_error" in path)
    assert [row[0] for row in json.loads(table)["data"]] == [20, 56]


def test_a_sweep_does_not_fail_with_wandb(write, server, capsys, tmp_path):
    run_dir = write(entity="us")
    run_dir.config |= {"output_dir": str(tmp_path)}
    server.rejects_keys = True
    send_sweep([run_dir])
    assert capsys.readouterr().out.startswith("W&B did not accept the report: ")
    wandb.teardown()


@pytest.mark.usefixtures("no_study")
def test_the_identity_of_a_sent_run_is_that_of_its_next_start(write, send, server):
    run_dir = write()
    send()
    assert WandbIdentity.of(run_dir) == WandbIdentity("us", "deep", stored(run_dir)["id"])
