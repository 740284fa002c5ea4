import numpy as np
import pytest
import torch
from torch import nn

from src.tasks.classification import Classifier, ErrorMeter, rates


def reference(logits, labels, k):
    """Mistakes counted image by image: the label is not among the k highest scores."""
    best = np.argsort(-logits, axis=1)[:, :k]
    return sum(label not in row for label, row in zip(labels, best, strict=True))


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_counts_equal_a_count_image_by_image_over_uneven_batches(classes):
    rng = np.random.default_rng(0)
    counts, wrong, wrong5, total = ErrorMeter(), 0, 0, 0
    for size in (1, 7, 128):
        logits = rng.standard_normal((size, classes)).astype(np.float32)
        labels = rng.integers(0, classes, size)
        wrong += reference(logits, labels, 1)
        wrong5 += reference(logits, labels, 5)
        total += 2.5 * size
        counts.update(torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor(2.5))
    assert counts.compute() == (total, wrong, wrong5, 136)


def test_rates_are_percent():
    assert rates(50.0, 25, 5, 100) == {"loss": 0.5, "error": 25.0, "error_top5": 5.0}


def test_measuring_tells_the_latest_and_taking_tells_all():
    observed = []

    class Observer:
        def observe(self, error):
            observed.append(error)

    module = Classifier(nn.Identity(), schedule=Observer())
    right, wrong = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    for logits in (right, right, wrong, wrong):
        module._count(module.trained, (logits, torch.tensor([0])))
        if logits is right:
            latest = module.measure()
    assert latest["error"] == 0
    assert module.measure()["error"] == 100
    assert module.pop_train_errors()["error"] == 50
    module._count(module.trained, (wrong, torch.tensor([0])))
    assert module.measure()["error"] == module.pop_train_errors()["error"] == 100
    assert observed == [0, 0, 100, 100]
