import pytest
import torch
import yaml
from conftest import TINY, Killed
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from ranks import said_in_a_run, together
from src.training.callbacks.record import Record
from test_train import assert_same_run, weights
from torch import nn

from src import train
from src.evaluation.evaluator import evaluate
from src.evaluation.weights import load_weights, read_weights
from src.training.callbacks import precise_bn

AVERAGED = ("running_mean", "running_var")


def by_hand(folder, iterations, shares=1):
    """A run's averages over training batches with its final weights, float64: from the inputs of each batch norm."""
    config = folder.config
    net = instantiate(config["model"], _convert_="all").to(memory_format=torch.channels_last)
    load_weights(net, read_weights(folder.last_checkpoint))
    recipe = config["recipe"]
    data = instantiate(
        config["data"], seed=0, batch_size=recipe["batch_size"], iterations=recipe["iterations"]
    )
    data.prepare_data()
    data.setup()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    seen = {}

    def look(name, given):
        values = given[0].double().movedim(1, 0).flatten(1)
        seen.setdefault(name, []).append(torch.stack([values.mean(1), values.var(1, correction=1)]))

    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, given, name=name: look(name, given))
    with (
        torch.no_grad(),
        torch.autocast(
            "cpu", torch.bfloat16, enabled=config["trainer"]["precision"] == "bf16-mixed"
        ),
    ):
        for i in iterations:
            for share in batches[i][0].chunk(shares):
                net.train()(share)
    averages = {name: torch.stack(of).mean(0) for name, of in seen.items()}
    return {
        f"{name}.{of}": both[i] for name, both in averages.items() for i, of in enumerate(AVERAGED)
    }


def averages(folder):
    return {
        key: value
        for key, value in read_weights(folder.last_checkpoint).items()
        if key.endswith(AVERAGED)
    }


def assert_averages(found, expected, **tolerance):
    assert len(found) > 10 and found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, **tolerance)


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(("batches", "iterations"), [(3, range(5, 8)), (200, range(8))])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_averages_are_over_the_last_batches_with_the_final_weights(
    tiny, precision, batches, iterations
):
    folder = tiny(f"recipe.precise_bn_batches={batches}", f"trainer.precision={precision}")
    assert_averages(averages(folder), by_hand(folder, iterations), **CLOSE)
    for others in (range(4, 8), range(4, 7)):
        with pytest.raises(AssertionError):
            assert_averages(averages(folder), by_hand(folder, others), **CLOSE)


def test_nothing_but_the_averages_and_what_is_tested_with_them_changes(tiny, tmp_path, monkeypatch):
    momenta = []

    def look(self, trainer, module):
        momenta.extend(of.momentum for of in module.net.modules() if isinstance(of, nn.BatchNorm2d))

    monkeypatch.setattr(Record, "on_train_end", look)
    moving, strict = (
        tiny(f"recipe.precise_bn_batches={n}", f"output_dir={tmp_path}/{n}") for n in (0, 3)
    )
    *rows, last = moving.rows()
    *strict_rows, strict_last = strict.rows()
    tested = {key for key in last if key.startswith("test/")}
    assert strict_rows == rows and {key for key in last if last[key] != strict_last[key]} <= tested
    assert last["test/loss"] != strict_last["test/loss"]
    gradients = [
        [line.split(",")[:3] for line in f.layers.read_text().splitlines()]
        for f in (moving, strict)
    ]
    assert gradients[0] == gradients[1]
    one, other = weights(moving), weights(strict)
    for key, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]) != (
            "running" in key or "num_batches" in key
        ), key
    assert one["training"] == other["training"]
    for key, state in one["optimizer_states"][0]["state"].items():
        assert torch.equal(
            state["momentum_buffer"], other["optimizer_states"][0]["state"][key]["momentum_buffer"]
        )
    assert len(momenta) == 14 and {*momenta} == {0.1}

    config = strict.config | {"weights": strict.last_checkpoint}
    test = evaluate([config], {"accelerator": "cpu", "precision": "32-true"}, "center", "it")
    assert test["test_error"] == strict.summary["test_error"] == strict_last["test/error"]


@pytest.mark.fault_injection(
    "stop", "an exception while batch norm's averages are taken, and before and after"
)
@pytest.mark.parametrize("step", ["none", "inductor"])
def test_a_run_killed_around_the_averages_goes_on_to_the_same_bits(
    tiny, monkeypatch, tmp_path, step, record_property
):
    """With the step in one piece, too, but without the compiler."""
    monkeypatch.setattr("src.models.resnet.ResidualNet.compile", lambda net: None)
    whole = tiny("recipe.precise_bn_batches=4", f"output_dir={tmp_path}/whole")
    last_batches = precise_bn._last_batches

    def killed_in_the_midst(*args):
        for i, batch in enumerate(last_batches(*args)):
            if i == 2:
                raise Killed
            yield batch

    def killed_at(hook):
        original = getattr(Record, hook)

        def killed(self, trainer, *args):
            if trainer.global_step == 8:
                raise Killed
            original(self, trainer, *args)

        return Record, hook, killed

    places = [(precise_bn, "_last_batches", killed_in_the_midst)]
    places += map(killed_at, ["on_train_batch_end", "on_validation_start", "_save", "on_train_end"])
    record_property("tried", len(places))
    for owner, name, stop in places:
        overrides = (
            "recipe.precise_bn_batches=4",
            f"compile={step}",
            f"output_dir={tmp_path}/{step}-{name}",
        )
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, stop)
            tiny(*overrides)
        assert_same_run(whole, tiny(*overrides))


@pytest.mark.parametrize("synced", [False, True])
def test_two_processes_average_over_the_shares_of_both(find, synced):
    """With synchronised batch norm a share is the whole batch."""
    overrides = [
        "n=1",
        "recipe.iterations=3",
        "recipe.precise_bn_batches=2",
        "recipe.eval_every=2",
        "trainer.devices=2",
    ]
    overrides += [
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"trainer.sync_batchnorm={synced}",
    ]
    folder = find(*overrides)
    together(2, said_in_a_run, folder)
    shares = 1 if synced else 2
    assert_averages(averages(folder), by_hand(folder, range(1, 3), shares), **CLOSE)
    with pytest.raises(AssertionError):
        assert_averages(averages(folder), by_hand(folder, range(1, 3), 3 - shares), **CLOSE)


def test_an_unfinished_run_from_before_it_could_be_chosen_goes_on(tiny, tiny_until, find, tmp_path):
    whole = tiny(f"output_dir={tmp_path}/whole")
    tiny_until(5)
    folder = find(*TINY, "trainer.precision=32-true")
    config, path = folder.config, folder.path / "config.yaml"
    before = config | {
        "recipe": {
            key: value for key, value in config["recipe"].items() if key != "precise_bn_batches"
        }
    }
    path.write_text(yaml.safe_dump(before))
    checkpoint = weights(folder)
    del checkpoint["run"]["config"]["recipe.precise_bn_batches"]
    torch.save(checkpoint, folder.last_checkpoint)
    assert_same_run(whole, tiny())


@pytest.mark.gpu
def test_a_step_in_one_graph_leaves_the_averages_where_it_reads_them(tiny):
    folder = tiny("recipe.precise_bn_batches=3", "compile=cudagraph")
    assert_averages(averages(folder), by_hand(folder, range(5, 8)), rtol=1e-2, atol=1e-3)


def test_photos_are_made_by_workers_and_normalized_as_in_training(tiny, tmp_path):
    where = [
        "data=imagenet",
        f"data.root={make_folders(tmp_path / 'photos')}",
        "data.num_workers=1",
    ]
    folder = tiny(*where, "recipe.batch_size=4", "recipe.iterations=2", "recipe.eval_every=2")
    assert folder.config["recipe"]["precise_bn_batches"] == 200  # as its recipe has it
    assert_averages(averages(folder), by_hand(folder, range(2)), **CLOSE)


def test_a_net_without_batch_norm_costs_no_pass_over_the_data():
    no_trainer = None
    precise_bn.recompute_bn_statistics(
        no_trainer, nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), 200
    )


def test_a_negative_number_of_batches_is_refused_before_a_folder_is_made(find):
    folder = find("recipe.precise_bn_batches=-1")
    with pytest.raises(ValueError, match="recipe.precise_bn_batches=-1 must be at least 0"):
        train.run(folder)
    assert not folder.path.exists()
