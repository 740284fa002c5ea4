"""Each experiment of conf/experiment/ is a sweep of different runs, and its file describes it."""

import hashlib
import re
from itertools import product

import pytest
import torch
from command_line import call
from conftest import ROOT
from hydra import compose
from hydra.utils import instantiate
from torch.autograd import grad
from torch.nn.functional import cosine_similarity, cross_entropy

from src.config import CONF, compose_config, find_run_dir
from src.runs.naming import identity_keys
from src.tables import read_csv
from src.training.callbacks.layer_stats import record_signals

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OF_THE_PAPER = {"fig4", "fig6", "fig7", "table2", "table3", "table4", "table5", "table6"}


def jobs(name):
    """Return the overrides of each run of an experiment."""
    config = compose("train", [f"experiment={name}"], return_hydra_config=True)
    params = config.hydra.sweeper.params
    return [
        [f"{key}={value}" for key, value in zip(params, values, strict=True)]
        for values in product(*(str(values).split(",") for values in params.values()))
    ]


@pytest.fixture(scope="module")
def runs():
    """Return the run directories of an experiment, composed once."""
    cache = {}

    def of_experiment(name):
        if name not in cache:
            configs = (compose_config(f"experiment={name}", *job) for job in jobs(name))
            cache[name] = [find_run_dir(config) for config in configs]
        return cache[name]

    return of_experiment


def test_there_is_an_experiment_for_each_figure_and_table_of_the_paper():
    more = {"digits_depth", "shortcuts", "warmup", "gradients", "highway"}
    assert OF_THE_PAPER | more <= {*EXPERIMENTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_sweep_with_a_run_for_each_combination_of_its_values(name, runs):
    sweep = compose("train", [f"experiment={name}"], return_hydra_config=True)
    assert sweep.hydra.mode.name == "MULTIRUN"
    run_dirs = runs(name)
    assert len({run_dir.path for run_dir in run_dirs}) == len(jobs(name)) > 1
    assert {run_dir.config["choices"]["experiment"] for run_dir in run_dirs} == {name}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_file_of_an_experiment_begins_with_its_claim_command_cost_and_expectation(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    labels = [
        line[2:].partition(":")[0]
        for line in text.splitlines()
        if line.startswith("# ") and line[2].isupper()
    ]
    assert labels == ["Claim", "Command", "Cost", "Expect"]
    assert f"python -m src.train experiment={name}" in " ".join(text.replace("\n#", " ").split())


def test_fig6_trains_the_papers_nets_on_all_50k_images(runs):
    run_dirs = runs("fig6")
    nets = [(run.config["choices"]["model"], 6 * run.config["model"]["n"] + 2) for run in run_dirs]
    assert nets == [(f"plain{depth}", depth) for depth in (20, 32, 44, 56, 110)] + [
        (f"resnet{depth}", depth) for depth in (20, 32, 44, 56, 110, 1202)
    ]
    assert {run.config["data"]["val_images"] for run in run_dirs} == {0}
    assert {run.config["recipe"]["iterations"] for run in run_dirs} == {64000}


def test_a_shorter_fig6_differs_in_its_length_alone(runs):
    shorter = ("experiment=fig6", "model=plain20", "recipe.iterations=2000")
    recipe = find_run_dir(compose_config(*shorter)).config["recipe"]
    assert recipe == runs("fig6")[0].config["recipe"] | {"iterations": 2000}


def test_each_departure_changes_one_key_of_the_baseline(runs):
    first_seed = [run for run in runs("departures") if run.config["seed"] == 0]
    baseline, *others = [identity_keys(run.config) for run in first_seed]
    changed = [{k for k in {**baseline, **run} if baseline.get(k) != run.get(k)} for run in others]
    assert sorted(key for (key,) in changed) == [
        "data.normalization",
        "data.val_images",
        "model.init",
        "model.shortcut",
        "model.shortcut",
        "recipe.batch_norm_images",
        "recipe.decay_norm_and_bias",
        "recipe.optimizer.nesterov",
        "trainer.precision",
    ]
    # Every file of conf/departure/ is in it.
    assert len(first_seed) == len([*(CONF / "departure").glob("*.yaml")])


@pytest.mark.parametrize(
    ("model", "norm", "lowest", "highest"),
    [("plain", "batch", 0.5, 2), ("plain", "none", 0, 1e-3), ("resnet", "none", 20, 1e4)],
)
def test_without_batch_norm_signals_vanish_or_explode_with_depth(model, norm, lowest, highest):
    """The claim of `batch_norm` about untrained nets of 56 layers, on noise."""
    torch.manual_seed(0)
    net = instantiate(compose_config(f"model={model}", "n=9", f"model.norm={norm}").model)
    with record_signals(net) as (responses, _):
        net(torch.randn(32, 3, 8, 8))
    first, *_, last = responses.values()
    assert len(responses) == 55
    assert lowest < last / first < highest


@pytest.mark.parametrize(("model", "lowest", "highest"), [("plain", -0.2, 0.2), ("resnet", 0.9, 1)])
def test_in_bf16_the_first_gradient_of_a_deep_plain_net_has_another_direction(
    model, lowest, highest
):
    """The reason for `precision`: untrained nets of 56 layers, on noise."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 16, 16), torch.arange(64) % 10
    net = instantiate(compose_config(f"model={model}", "n=9").model)
    gradients = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            scores = net(images)
        loss = cross_entropy(scores.float(), labels)
        gradients.append(torch.cat([g.flatten() for g in grad(loss, [*net.parameters()])]))
    assert lowest < cosine_similarity(*gradients, dim=0) < highest


@pytest.mark.parametrize(
    ("table", "protocol"), [("table2", "10crop"), ("table3", "10crop"), ("table4", "multiscale")]
)
def test_a_table_of_imagenet_has_the_papers_nets_and_protocol(table, protocol, runs):
    run_dirs = runs(table)
    assert {run.config["protocol"] for run in run_dirs} == {protocol}
    nets = [(net(run), run.config["model"].get("shortcut") or "") for run in run_dirs]
    in_paper = [
        (row["net"], row["shortcut"])
        for row in read_csv(ROOT / "src" / "report" / "paper_results.csv")
        if row["data"] == "imagenet" and row["protocol"] == protocol and table[-1] in row["where"]
    ]
    assert sorted(nets) == sorted(in_paper)


def test_experiments_share_the_runs_that_several_tables_have(runs):
    names = ("fig4", "table2", "table3", "table4", "table5")
    paths = {name: {run.path for run in runs(name)} for name in names}
    assert paths["fig4"] == paths["table2"]
    assert paths["table4"] < paths["table3"]
    assert len(paths["fig4"] & paths["table3"]) == 2
    assert len(paths["table5"] & paths["table3"]) == 3


def test_table5_has_the_six_nets_of_the_ensemble(runs):
    nets = sorted(net(run) for run in runs("table5"))
    assert nets == ["resnet101"] * 2 + ["resnet152"] * 2 + ["resnet50"] * 2


def net(run_dir):
    """Return the name of a net without its shortcut."""
    return run_dir.config["choices"]["model"].rstrip("bc")


WEIGHTS = sorted((ROOT / "experiments").glob("*/*.safetensors"))
PAGES = [pytest.param(path, id=path.stem) for path in WEIGHTS]


def test_all_trained_weights_together_are_small():
    assert 0 < sum(path.stat().st_size for path in WEIGHTS) <= 10e6


@pytest.mark.parametrize("path", PAGES)
def test_the_page_of_trained_weights_has_the_hash_of_their_file(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"`{digest}`" in path.with_suffix(".md").read_text()


@pytest.mark.slow
@pytest.mark.cifar10
@pytest.mark.parametrize("path", PAGES)
def test_trained_weights_have_the_error_that_their_page_states(path):
    done = call(f"weights={path}", "trainer.accelerator=cpu", module="src.evaluate")
    found = re.search(r"top-1 error (.+), (top-5) error (.+?) \(", done.stdout)
    assert found, done.stderr
    row = f"| test error | {found[1]} ({found[2]} {found[3]})"
    assert row in path.with_suffix(".md").read_text()
