"""A run ends before a loss or a weight that is not finite reaches a checkpoint."""

import pytest
import torch
from pytorch_lightning import Callback
from run_comparison import load_checkpoint

from src.models.resnet import resnet
from src.tasks.classification import Classifier
from src.training.callbacks.nan_guard import NaNGuard


@pytest.mark.fault_injection("fault", "a loss that is not finite")
def test_a_loss_that_is_not_finite_ends_the_run_before_the_first_checkpoint(tiny, tmp_path):
    message = (
        r"the training loss is not finite at iteration 2, learning rate 1e\+30: "
        r"try a lower recipe.schedule.lr \(there is no checkpoint yet\)"
    )
    with pytest.raises(FloatingPointError, match=message):
        tiny("recipe.schedule.lr=1e30")
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.fault_injection("fault", "a loss that is not finite")
def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tiny, tmp_path):
    """After iteration 4 the learning rate is 1e30."""
    schedule = ["recipe.schedule.milestones=[0.5]", "recipe.schedule.gamma=1e31"]
    message = "not finite at iteration 6, .*the last good checkpoint is .*last.ckpt"
    with pytest.raises(FloatingPointError, match=message):
        tiny(*schedule, "recipe.eval_every=8")
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_all_weights_are_checked_with_one_wait_for_the_device(find, monkeypatch):
    module = Classifier(resnet(1, "A", 10, "he_fan_in"))
    answers = []
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: answers.append(tensor) or True)
    NaNGuard(find()).on_save_checkpoint(None, module, {})
    assert len(answers) == 1


class BreakWeight(Callback):
    """Set one value of the net after the loss of an iteration was measured."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 3:
            with torch.no_grad():
                module.net.get_parameter(self.name)[0, 0, 0, 0] = self.value


@pytest.mark.fault_injection("fault", "a weight that is not finite")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_weight_that_is_not_finite_reaches_no_checkpoint(tiny, tmp_path, value):
    break_weight = BreakWeight("layer1.0.conv1.weight", value)
    with pytest.raises(FloatingPointError, match="a weight is not finite at iteration 3, learning"):
        tiny(callbacks=[break_weight])
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert load_checkpoint(tiny())["global_step"] == 8  # without the fault it resumes
