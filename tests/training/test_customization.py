"""Nets, optimizers, schedules, callbacks and Trainer flags that a command line adds to a run."""

import pytest
import torch
import torchvision
from command_line import call_here
from conftest import TINY, KillBefore, Killed
from run_comparison import assert_same_run, load_checkpoint
from torch.optim import lr_scheduler

from src import train
from src.config import compose_config, resolve
from src.evaluation.evaluator import evaluate_runs
from src.export import export
from src.report.reading import read_runs
from src.training.lr_schedule import make_schedule

CUSTOM = ("model=custom", "model._target_=torchvision.models.resnet18", "+model.num_classes=10")
CLIP = "+trainer.gradient_clip_val=0.01"
NO_GRADIENTS = "+callbacks.stop._target_=user_callbacks.NoGradients"
AVERAGE = ("+callbacks.mean._target_=user_callbacks.Average", "+callbacks.mean.decay=0.5")


def weights(run_dir):
    state = load_checkpoint(run_dir)["state_dict"]
    return {name: value for name, value in state.items() if name.endswith("weight")}


def bitwise_equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_net_of_torchvision_trains_resumes_evaluates_and_is_exported(find, capsys, tmp_path):
    run_dir, resumed = (
        find(*TINY[1:], *CUSTOM, "trainer.precision=32-true", f"output_dir={tmp_path}/{name}")
        for name in ("undisturbed", "resumed")
    )
    train.run(run_dir)
    with pytest.raises(Killed):
        train.run(resumed, [KillBefore(5)])
    train.run(resumed)
    assert_same_run(run_dir, resumed)
    summary = run_dir.summary
    assert (summary["model"], summary["depth"], summary["n"]) == ("custom", None, None)
    net = torchvision.models.resnet18(num_classes=10)
    assert summary["parameters"] == sum(p.numel() for p in net.parameters())

    capsys.readouterr()
    evaluate_runs([run_dir], {"accelerator": "cpu", "devices": 1, "precision": "32-true"}, "center")
    assert f"top-1 error {summary['test_error']:.2f}%" in capsys.readouterr().out
    export(run_dir.path, tmp_path / "net.safetensors")
    result = call_here(capsys, f"weights={tmp_path}/net.safetensors", module="src.evaluate")
    assert f"top-1 error {summary['test_error']:.2f}%" in result.stdout

    (run,), skipped = read_runs([run_dir.path])
    assert (run.row["depth"], run.net, skipped) == (0, "resnet18", [])


def test_a_net_of_ones_own_needs_a_function(find):
    with pytest.raises(ValueError, match=r"needs model\._target_=FUNCTION"):
        find("model=custom")


def test_a_net_without_activation_checkpointing_refuses_it(find):
    run_dir = find(*CUSTOM, "activation_checkpointing=true")
    with pytest.raises(ValueError, match="has no activation checkpointing"):
        train.run(run_dir)


def test_another_optimizer_leaves_out_what_it_does_not_take(tiny):
    run_dir = tiny("recipe.optimizer._target_=torch.optim.AdamW", "recipe.schedule.lr=0.01")
    assert run_dir.config["recipe"]["optimizer"] == {
        "_target_": "torch.optim.AdamW",
        "_partial_": True,
        "fused": True,
        "weight_decay": 1e-4,
    }
    (state,) = load_checkpoint(run_dir)["optimizer_states"]
    assert {*state["state"][0]} == {"step", "exp_avg", "exp_avg_sq"}
    assert "torch.optim.AdamW" in run_dir.path.name


def test_what_is_set_for_another_optimizer_is_never_left_out():
    config = compose_config(
        "recipe.optimizer._target_=torch.optim.AdamW", "recipe.optimizer.momentum=0.8"
    )
    assert resolve(config, "train")[0]["recipe"]["optimizer"]["momentum"] == 0.8


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("CosineAnnealingLR", {"T_max": 20}), ("OneCycleLR", {"max_lr": 0.3, "total_steps": 20})],
)
def test_a_scheduler_of_torch_gives_its_learning_rates(name, arguments):
    options = {"_target_": f"torch.optim.lr_scheduler.{name}", "lr": 0.3, **arguments}
    schedule = make_schedule(options, 3, 20)
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.3)
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert len({*expected}) > 15
    assert [schedule(i) for i in range(20)] == expected
    resumed = make_schedule(options, 3, 20)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed(12) == expected[12]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CosineAnnealingLR", r"'T_max': set its arguments with \+recipe\.schedule\.NAME"),
        ("ReduceLROnPlateau", "src.training.lr_schedule.PlateauSchedule"),
    ],
)
def test_a_scheduler_that_lacks_something_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make_schedule({"_target_": f"torch.optim.lr_scheduler.{name}", "lr": 0.1}, 3, 20)


def test_a_scheduler_of_torch_is_set_by_its_name(tiny):
    target = "recipe.schedule._target_=torch.optim.lr_scheduler.CosineAnnealingLR"
    run_dir = tiny(target, "+recipe.schedule.T_max=8")
    lrs = [row["lr"] for row in run_dir.rows()]
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] < 0.01 < lrs[0]


@pytest.mark.usefixtures("uncompiled")
def test_a_trainer_flag_acts_whatever_the_compile_mode(tiny, capsys, tmp_path):
    usual, clipped = tiny(), tiny(CLIP)
    assert "gradient_clip_val0.01" in clipped.path.name
    assert not bitwise_equal(weights(usual), weights(clipped))
    capsys.readouterr()
    captured = tiny(CLIP, "compile=inductor", f"output_dir={tmp_path}/captured")
    assert bitwise_equal(weights(clipped), weights(captured))
    assert "compile=none instead of inductor, which would ignore " in capsys.readouterr().out


def test_gradients_are_clipped_in_mixed_precision_too(tiny):
    usual, clipped = (tiny("trainer.precision=bf16-mixed", *flags) for flags in ((), (CLIP,)))
    assert not bitwise_equal(weights(usual), weights(clipped))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("mode", ["none", "inductor"])
def test_a_callback_between_backward_pass_and_update_acts_whatever_the_compile_mode(
    tiny, find, capsys, mode
):
    overrides = (NO_GRADIENTS, "recipe.optimizer.weight_decay=0", f"compile={mode}")
    trained = weights(tiny(*overrides))
    untrained = weights(tiny("recipe.schedule.lr=0"))
    assert bitwise_equal(trained, untrained)
    said = "which would ignore NoGradients.on_before_optimizer_step" in capsys.readouterr().out
    assert said == (mode == "inductor")


def test_the_state_of_a_callback_is_resumed_exactly(tiny, tiny_until, tmp_path):
    killed = f"output_dir={tmp_path}/killed"
    tiny_until(5, *AVERAGE, killed)
    states = [
        load_checkpoint(run)["callbacks"]["Average"]["value"]
        for run in (tiny(*AVERAGE), tiny(*AVERAGE, killed))
    ]
    assert states[0] == states[1] != 0


def test_callbacks_and_flags_are_part_of_the_run_key(find):
    names = {find(*added).path.name for added in ((), AVERAGE, (NO_GRADIENTS,), (CLIP,))}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+callbacks.x=3", r"callbacks\.x is not a Lightning callback"),
        ("+callbacks.x._target_=builtins.dict", r"callbacks\.x is not a Lightning callback"),
        ("callbacks=3", r"add one with \+callbacks\.NAME\._target_=CLASS"),
        ("+trainer.max_epochs=3", r"set recipe\.iterations=N"),
        ("+trainer.val_check_interval=3", r"set recipe\.eval_every=N"),
        ("+trainer.accumulate_grad_batches=2", r"set recipe\.batch_size=N"),
        ("+trainer.enable_checkpointing=true", "every run saves checkpoints"),
    ],
)
def test_what_a_run_owns_is_refused_with_the_key_to_use(find, override, message):
    with pytest.raises(ValueError, match=message):
        make_trainer_of(find, override)


def make_trainer_of(find, override):
    from src.training.trainer import RunCallbacks

    RunCallbacks(find(*TINY, override), "test")
