"""How a run is built from its config, and what its summary says."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from pytorch_lightning import Callback

from src.evaluation.evaluator import evaluate
from src.models.normalization import GhostBatchNorm2d
from src.runs.environment import versions
from src.training.build import build
from src.training.precision import forbid_tf32
from src.training.trainer import make_trainer


@pytest.fixture
def built(find):
    """Build the module and the data of a command line."""

    def build_run(*overrides):
        config = find(
            *TINY, "trainer.precision=32-true", "trainer.accelerator=cpu", *overrides
        ).config
        return build(config, make_trainer(config, []))

    return build_run


def test_the_net_the_optimizer_and_the_schedule_are_those_of_the_config(built):
    module, data = built("n=2", "recipe.optimizer.weight_decay=0.5", "recipe.schedule.lr=0.3")
    (group,) = module.configure_optimizers().param_groups
    assert module.net.depth == 14
    assert (group["weight_decay"], group["lr"], group["momentum"]) == (0.5, 0.3, 0.9)
    assert data.batch_size == 128
    assert not module.net.activation_checkpointing


def test_batch_norm_over_fewer_images_draws_the_same_weights(built):
    usual, limited = (built(f"recipe.batch_norm_images={n}")[0].net for n in ("null", "64"))
    assert {m.images for m in limited.modules() if isinstance(m, GhostBatchNorm2d)} == {64}
    assert not any(isinstance(m, GhostBatchNorm2d) for m in usual.modules())
    pairs = zip(usual.parameters(), limited.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_batch_norm_over_fewer_images_and_over_all_processes_exclude_each_other(find):
    config = find(*TINY, "recipe.batch_norm_images=64", "trainer.accelerator=cpu").config
    trainer = make_trainer(config, [])
    config["trainer"]["sync_batchnorm"] = True
    with pytest.raises(ValueError, match="trainer.sync_batchnorm=true exclude each other"):
        build(config, trainer)


def test_initial_weights_are_a_function_of_the_seed(built):
    states = [built(f"seed={seed}")[0].net.state_dict() for seed in (0, 0, 1)]
    weights = [state["conv1.weight"] for state in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_run_is_one_epoch_to_lightning_evaluated_at_its_interval(find):
    config = find(*TINY, "trainer.accelerator=cpu").config
    trainer = make_trainer(config, [])
    assert (trainer.max_steps, trainer.max_epochs, trainer.val_check_interval) == (8, 1, 3)
    config["recipe"]["eval_every"] = 1000
    assert make_trainer(config, []).val_check_interval == 8


@pytest.mark.parametrize(("precision", "allowed"), [("32-true", False), ("bf16-mixed", True)])
def test_float32_means_no_tf32_on_a_gpu(find, monkeypatch, precision, allowed):
    flags = [SimpleNamespace(allow_tf32=True) for _ in range(2)]
    monkeypatch.setattr(torch.backends, "cudnn", flags[0])
    monkeypatch.setattr(torch.backends.cuda, "matmul", flags[1])
    forbid_tf32(precision)
    assert [flag.allow_tf32 for flag in flags] == [allowed, allowed]
    forbidden = []
    monkeypatch.setattr("src.training.trainer.forbid_tf32", forbidden.append)
    make_trainer(find(*TINY, f"trainer.precision={precision}").config, [])
    assert forbidden == [precision]


def test_deterministic_algorithms_do_not_fill_memory_that_they_write_themselves(find, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    make_trainer(find(*TINY, "trainer.deterministic=true").config, [])
    assert not torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("protocol=10crop", "protocol=10crop does not apply to these images: set protocol=center"),
        ("compile=cudagraph", "compile=cudagraph needs a GPU, not cpu"),
        ("model.shortcut=b", "shortcut b is not one of A, B and C; did you mean B?"),
        ("recipe.batch_norm_images=48", "batch_norm_images=48 must be a number that divides"),
    ],
)
def test_what_the_net_the_data_and_the_device_cannot_do_is_refused_before_training(
    tiny, tmp_path, override, message
):
    with pytest.raises(Exception, match=message):
        tiny(override, "trainer.accelerator=cpu")
    assert list(tmp_path.iterdir()) == []


class OutputTypes(Callback):
    """Collect the types in which the net computes its scores, by stage."""

    def __init__(self):
        self.seen = set()

    def on_fit_start(self, trainer, module):
        def note(net, inputs, output):
            if trainer.state.stage:  # counting multiply-adds for the summary calls the net, too
                self.seen.add((trainer.state.stage.value, output.dtype))

        module.net.fc.register_forward_hook(note)


@pytest.mark.parametrize("val_images", [0, 97])
def test_final_weights_are_tested_in_float32_whatever_they_were_trained_in(tiny, val_images):
    types = OutputTypes()
    overrides = [f"data.val_images={val_images}", "trainer.precision=bf16-mixed"]
    run_dir = tiny(*overrides, callbacks=[types])
    assert types.seen == {
        ("train", torch.bfloat16),
        ("validate", torch.bfloat16),
        ("test", torch.float32),
    }
    summary, config = run_dir.summary, run_dir.config | {"weights": run_dir.last_checkpoint}
    fp32 = {"accelerator": "cpu", "precision": "32-true"}
    results = evaluate([config], fp32, "center", "the run")
    assert summary["test_error"] == results["test_error"]
    assert (summary["precision"], summary["eval_precision"]) == ("bf16-mixed", "32-true")


def test_the_summary_describes_the_run_and_what_it_was_executed_on(tiny):
    summary = tiny("data.test_images=100", "data.val_images=97").summary
    expected = {"model": "resnet", "n": 1, "depth": 8, "shortcut": "A", "data": "digits", "seed": 0}
    expected |= {"val_images": 97, "train_images": 1600, "iterations": 8, "precision": "32-true"}
    expected |= {"devices": 1, "versions": versions()}
    assert {key: summary[key] for key in expected} == expected
    assert summary["parameters"] == 75290
    assert summary["images_per_second"] > 0
    assert summary["images_per_second"] * summary["seconds"] > 8 * 128  # evaluations included
