"""Errors are counted exactly, and the classifier tells its schedule about them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from src.tasks.classification import Classifier, ErrorMeter

RIGHT, WRONG = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])


def count_errors(logits, labels, k):
    """Count image by image where the label is not among the k highest scores."""
    best = np.argsort(-logits, axis=1)[:, :k]
    return sum(label not in row for label, row in zip(labels, best, strict=True))


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_a_meter_counts_top1_and_top5_errors_over_batches_of_different_sizes(classes):
    rng = np.random.default_rng(0)
    meter, errors, errors_top5, loss = ErrorMeter(), 0, 0, 0.0
    for size in (1, 7, 128):
        logits = rng.standard_normal((size, classes)).astype(np.float32)
        labels = rng.integers(0, classes, size)
        errors += count_errors(logits, labels, 1)
        errors_top5 += count_errors(logits, labels, 5)
        loss += 2.5 * size
        meter.update(torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor(2.5))
    assert meter.compute() == (loss, errors, errors_top5, 136)
    meter.reset()
    assert meter.compute() == (0, 0, 0, 0)


def test_a_meter_is_reset_in_place():
    """A captured training step keeps adding to the same memory."""
    meter = ErrorMeter()
    addresses = [meter.loss.data_ptr(), meter.hits.data_ptr(), meter.images.data_ptr()]
    meter.update(RIGHT, torch.tensor([0]), torch.tensor(1.0))
    meter.reset()
    assert [meter.loss.data_ptr(), meter.hits.data_ptr(), meter.images.data_ptr()] == addresses


def test_metrics_are_the_mean_loss_and_percentages():
    expected = {"loss": 0.5, "error": 25.0, "error_top5": 5.0}
    assert Classifier(nn.Identity()).mean_metrics(50.0, 25, 5, 100) == expected
    assert {*expected} == {*Classifier.train_metrics}


class Listener:
    """A schedule that collects the errors it is given."""

    def __init__(self):
        self.train_errors, self.eval_errors = [], []
        self.on_train_error = self.train_errors.append
        self.on_eval_error = self.eval_errors.append


def test_recent_metrics_are_those_since_the_last_call_and_popped_ones_since_the_last_pop():
    module = Classifier(nn.Identity(), SGD, Listener())
    label = torch.tensor([0])
    recent = []
    for logits in (RIGHT, RIGHT, WRONG, WRONG):
        module.measure(module.train_meter, (logits, label))
        if logits is RIGHT:
            recent.append(module.recent_train_metrics()["error"])
    recent.append(module.recent_train_metrics()["error"])
    assert recent == [0, 0, 100]
    assert module.pop_train_metrics()["error"] == 50

    module.measure(module.train_meter, (WRONG, label))
    assert module.recent_train_metrics()["error"] == module.pop_train_metrics()["error"] == 100
    assert module.schedule.train_errors == [0, 0, 100, 100]


def test_the_schedule_is_told_the_error_of_an_evaluation():
    module = Classifier(nn.Identity(), SGD, Listener())
    module.validation_step((WRONG, torch.tensor([0])), 0)
    metrics = module.pop_eval_metrics()
    assert metrics["error"] == 100
    module.on_evaluated(metrics)
    assert module.schedule.eval_errors == [100]


def test_the_loss_is_the_mean_cross_entropy_of_a_batch():
    module = Classifier(nn.Identity())
    loss = module.training_step((torch.zeros(4, 10), torch.arange(4)), 0)
    assert loss.item() == pytest.approx(np.log(10))


def test_a_summary_has_the_last_training_error_and_the_test_errors():
    row = {"iteration": 8, "train/error": 1.0, "test/error": 2.0, "test/error_top5": 0.5}
    summary = Classifier(nn.Identity()).summarize(row)
    errors = {"train_error": 1.0, "val_error": None, "test_error": 2.0, "test_error_top5": 0.5}
    assert summary == errors


def test_an_evaluation_without_a_readable_image_is_an_error():
    module = Classifier(nn.Identity())
    with pytest.raises(ValueError, match="none of the images to evaluate can be read"):
        module.pop_eval_metrics()
