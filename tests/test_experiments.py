"""Every experiment composes into runs of their own, and opens by saying what it is about."""

from itertools import product

import pytest
from conftest import ROOT
from hydra import compose

from src import train
from src.benchmark.baselines import compose_run
from src.tables import read_csv

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def jobs(name):
    params = compose("train", [f"experiment={name}"], return_hydra_config=True).hydra.sweeper.params
    return [
        [f"{key}={value}" for key, value in zip(params, values, strict=True)]
        for values in product(*(str(values).split(",") for values in params.values()))
    ]


def test_the_experiments_are_those_of_the_paper():
    papers = {"fig4", "table2", "table3", "table4", "table5", "fig6", "table6", "fig7"}
    assert papers | {"digits_depth", "shortcuts", "warmup", "gradients", "highway"} <= {
        *EXPERIMENTS
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_as_many_runs_as_its_values_make(name, tmp_path):
    sweep = compose("train", [f"experiment={name}"], return_hydra_config=True)
    assert sweep.hydra.mode.name == "MULTIRUN"
    overrides = jobs(name)
    folders = [
        train.find_run_dir(compose_run(f"experiment={name}", f"output_dir={tmp_path}", *job))
        for job in overrides
    ]
    assert len({folder.path for folder in folders}) == len(overrides) > 1
    assert {folder.config["choices"]["experiment"] for folder in folders} == {name}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_its_claim_command_cost_and_what_to_expect(name):
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    assert [line[2:].partition(":")[0] for line in text.splitlines() if line[:2] == "# " and line[2].isupper()] == [
        "Claim", "Command", "Cost", "Expect",
    ]  # fmt: skip
    assert f"python -m src.train experiment={name}" in " ".join(text.replace("\n#", " ").split())


def test_fig6_is_the_papers_nets_on_all_50k_images_and_in_miniature_the_same():
    runs = [train.find_run_dir(compose_run("experiment=fig6", *job)) for job in jobs("fig6")]
    depths = [(run.config["choices"]["model"], 6 * run.config["model"]["n"] + 2) for run in runs]
    assert depths == [(f"plain{d}", d) for d in (20, 32, 44, 56, 110)] + [
        (f"resnet{d}", d) for d in (20, 32, 44, 56, 110, 1202)
    ]
    assert {
        (run.config["data"]["val_images"], run.config["recipe"]["iterations"]) for run in runs
    } == {(0, 64000)}
    small = train.find_run_dir(
        compose_run("experiment=fig6", "model=plain20", "recipe.iterations=2000")
    )
    assert small.config["recipe"] == runs[0].config["recipe"] | {"iterations": 2000}


def test_the_tables_of_imagenet_test_the_papers_nets_each_by_its_protocol():
    """Beside the rows of the tables as the report has them; what several tables have is one run."""
    folders = {name: [train.find_run_dir(compose_run(f"experiment={name}", *job)) for job in jobs(name)] for name in
               ("fig4", "table2", "table3", "table4", "table5")}  # fmt: skip
    printed = read_csv(ROOT / "src" / "report" / "paper_results.csv")
    for name, protocol in {"table2": "10crop", "table3": "10crop", "table4": "multiscale"}.items():
        assert {folder.config["protocol"] for folder in folders[name]} == {protocol}
        nets = [
            (_net(folder), folder.config["model"].get("shortcut") or "") for folder in folders[name]
        ]
        of_table = [
            row for row in printed if row["protocol"] == protocol and name[-1] in row["where"]
        ]
        table = [(row["net"], row["shortcut"]) for row in of_table if row["data"] == "imagenet"]
        assert sorted(nets) == sorted(table), name
    paths = {name: {folder.path for folder in of} for name, of in folders.items()}
    assert paths["fig4"] == paths["table2"] and paths["table4"] < paths["table3"]
    assert (len(paths["fig4"] & paths["table3"]), len(paths["table5"] & paths["table3"])) == (2, 3)
    assert (
        sorted(_net(folder) for folder in folders["table5"])
        == ["resnet101"] * 2 + ["resnet152"] * 2 + ["resnet50"] * 2
    )


def _net(folder):
    return folder.config["choices"]["model"].rstrip("bc")


def test_an_experiment_has_the_last_word_but_for_the_command_line():
    small = train.find_run_dir(compose_run("experiment=digits_depth"))
    assert small.config["trainer"]["precision"] == "32-true"
    assert train.find_run_dir(compose_run("experiment=digits_depth", "seed=4")).config["seed"] == 4
