"""Batch norm statistics recomputed after training, against averages computed by hand."""

import pytest
import torch
from command_line import call_here
from conftest import Killed
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from pytorch_lightning.callbacks import LambdaCallback
from ranks import run_on_ranks, train_and_capture
from run_comparison import assert_same_run, assert_same_tensors, load_checkpoint, momenta
from stopping import KillInForward, KillInHook
from sync_batchnorm import SyncBatchNorms
from torch import nn

from src.models.weights import load_weights, read_weights
from src.tasks.classification import Classifier
from src.training.callbacks.checkpointing import Checkpointing
from src.training.callbacks.layer_stats import LayerStats
from src.training.callbacks.precise_bn import PreciseBN, recompute_bn_statistics

STATISTICS = ("running_mean", "running_var")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SMALL = ("recipe.batch_size=32", "data.test_images=50")


def averages_by_hand(run_dir, iterations, shares=1):
    """Return the averages over training batches with the final weights, in float64.

    They are taken of the inputs of each batch norm. With several shares each batch is divided.
    """
    config = run_dir.config
    net = instantiate(config["model"], _convert_="all").to(memory_format=torch.channels_last)
    load_weights(net, read_weights(run_dir.last_checkpoint, net))
    recipe = config["recipe"]
    stream = {"batch_size": recipe["batch_size"], "iterations": recipe["iterations"]}
    data = instantiate(config["data"], seed=0, **stream, _convert_="all")
    data.prepare_data()
    data.setup()
    stream = data.train_dataloader()
    batches = [data.augment(*data.on_after_batch_transfer(batch, 0)) for batch in stream]
    measured = {}

    def measure(name, inputs):
        values = inputs[0].double().movedim(1, 0).flatten(1)
        statistics = torch.stack([values.mean(1), values.var(1, correction=1)])
        measured.setdefault(name, []).append(statistics)

    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: measure(name, inputs))
    in_bf16 = config["trainer"]["precision"] == "bf16-mixed"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        for i in iterations:
            for share in batches[i][0].chunk(shares):
                net.train()(share)
    means = {name: torch.stack(statistics).mean(0) for name, statistics in measured.items()}
    return {
        f"{name}.{key}": mean[i] for name, mean in means.items() for i, key in enumerate(STATISTICS)
    }


def averages(run_dir):
    """Return the batch norm statistics in the last checkpoint of a run."""
    net = instantiate(run_dir.config["model"], _convert_="all")
    weights = read_weights(run_dir.last_checkpoint, net)
    return {key: value for key, value in weights.items() if key.endswith(STATISTICS)}


def assert_close(found, expected, **tolerance):
    assert len(found) > 10
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, **tolerance)


@pytest.mark.parametrize(
    ("precision", "batches", "iterations"),
    [("32-true", 3, range(5, 8)), ("32-true", 200, range(8)), ("bf16-mixed", 3, range(5, 8))],
)
def test_statistics_are_averages_over_the_last_batches_with_the_final_weights(
    tiny, precision, batches, iterations
):
    overrides = (f"recipe.precise_bn_batches={batches}", f"trainer.precision={precision}")
    run_dir = tiny(*overrides, *SMALL)
    assert_close(averages(run_dir), averages_by_hand(run_dir, iterations), **CLOSE)
    for others in (range(4, 8), range(4, 7)):
        with pytest.raises(AssertionError):
            assert_close(averages(run_dir), averages_by_hand(run_dir, others), **CLOSE)


def test_nothing_changes_but_the_statistics_and_what_is_evaluated_with_them(tiny, tmp_path, capsys):
    momentums = set()

    def collect(trainer, module):
        norms = [norm for norm in module.net.modules() if isinstance(norm, nn.BatchNorm2d)]
        momentums.update(norm.momentum for norm in norms)

    moving, precise = (
        tiny(
            f"recipe.precise_bn_batches={n}",
            f"output_dir={tmp_path}/{n}",
            callbacks=[LambdaCallback(on_train_end=collect)],
        )
        for n in (0, 3)
    )
    assert momentums == {0.1}

    *rows, last = moving.rows()
    *precise_rows, precise_last = precise.rows()
    assert precise_rows == rows
    assert last["test/loss"] != precise_last["test/loss"]
    differing = {key for key in last if last[key] != precise_last[key]}
    assert all(key.startswith("test/") for key in differing)
    gradients = [
        [line.split(",")[:3] for line in run_dir.layers.read_text().splitlines()]
        for run_dir in (moving, precise)
    ]
    assert gradients[0] == gradients[1]

    one, other = load_checkpoint(moving), load_checkpoint(precise)
    for key, value in one["state_dict"].items():
        is_statistic = "running" in key or "num_batches" in key
        assert torch.equal(value, other["state_dict"][key]) != is_statistic, key
    assert one["training"] == other["training"]
    assert_same_tensors(*(momenta(run["optimizer_states"][0]) for run in (one, other)))

    assert precise.summary["test_error"] == precise_last["test/error"]
    evaluate = [f"run={precise.path}", "trainer.accelerator=cpu"]
    result = call_here(capsys, *evaluate, module="src.evaluate")
    assert f"top-1 error {precise_last['test/error']:.2f}%" in result.stdout


@pytest.mark.fault_injection("stop", "an exception while precise BN statistics are computed")
@pytest.mark.parametrize("mode", ["none", "inductor"])
def test_a_run_killed_around_the_computation_is_resumed_bit_exactly(
    tiny, monkeypatch, tmp_path, mode, record_property
):
    """With the captured step as well, though without the compiler."""
    monkeypatch.setattr("src.models.residual_net.ResidualNet.compile", lambda net: None)
    overrides = ("recipe.precise_bn_batches=4", *SMALL)
    undisturbed = tiny(*overrides, f"output_dir={tmp_path}/undisturbed")
    places = [
        KillInHook("on_train_batch_end", 8, before=PreciseBN),
        KillInForward(started=8, passes=3),  # one for training, then two of the four
        KillInHook("on_train_batch_end", 8, before=LayerStats),
        KillInHook("on_validation_start", 8),
        KillInHook("on_validation_end", 8, before=Checkpointing),
        KillInHook("on_save_checkpoint", 8),
        KillInHook("on_train_end", 8),
    ]
    record_property("tried", len(places))
    for place in places:
        with pytest.raises(Killed):
            tiny(*overrides, f"compile={mode}", callbacks=[place])
    resumed = tiny(*overrides, f"compile={mode}")
    assert_same_run(undisturbed, resumed, compiled=mode == "inductor")


@pytest.mark.parametrize("synchronized", [False, True])
def test_two_processes_average_over_the_shares_of_both(find, synchronized):
    """With synchronized batch norm the share of each is the complete batch."""
    run_dir = find(
        *("n=1", "recipe.iterations=3", "recipe.precise_bn_batches=2", "recipe.eval_every=2"),
        *("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"),
        *SMALL,
    )
    run_on_ranks(2, train_and_capture, run_dir, [SyncBatchNorms()] if synchronized else [])
    shares = 1 if synchronized else 2
    assert_close(averages(run_dir), averages_by_hand(run_dir, range(1, 3), shares), **CLOSE)
    with pytest.raises(AssertionError):
        assert_close(averages(run_dir), averages_by_hand(run_dir, range(1, 3), 3 - shares), **CLOSE)


@pytest.mark.gpu
def test_a_captured_step_finds_the_statistics_where_they_were(tiny):
    run_dir = tiny("recipe.precise_bn_batches=3", "compile=cudagraph")
    assert_close(averages(run_dir), averages_by_hand(run_dir, range(5, 8)), rtol=1e-2, atol=1e-3)


def test_images_are_decoded_by_workers_and_normalized_as_in_training(tiny, tmp_path):
    root = make_folders(tmp_path / "images")
    data = ["data=imagenet", f"data.root={root}", "data.num_workers=1"]
    run_dir = tiny(*data, "recipe.batch_size=4", "recipe.iterations=2", "recipe.eval_every=2")
    assert run_dir.config["recipe"]["precise_bn_batches"] == 200  # the default of its recipe
    assert_close(averages(run_dir), averages_by_hand(run_dir, range(2)), **CLOSE)


def test_a_net_without_batch_norm_needs_no_pass_over_the_data():
    no_trainer = None
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    recompute_bn_statistics(no_trainer, Classifier(net), 200)
