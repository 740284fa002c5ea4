"""What all tasks restore from a checkpoint: here with another number of processes."""

from types import SimpleNamespace

import pytest
from torch import nn
from torch.optim import SGD

from src.tasks.classification import Classifier
from src.training.lr_schedule import MilestoneSchedule

# Of two processes with 8 images each.
SAVED = {
    "schedule": {"warming_up": False},
    "last_sums": (),
    "sums": {
        "loss": [[2.0], [3.0]],
        "hits": [[5, 1, 0, 0, 0], [4, 0, 2, 0, 0]],
        "images": [[8], [8]],
    },
}


@pytest.mark.parametrize(
    ("world_size", "sums_of_ranks"),
    [
        (1, [(5, 7, 4, 16)]),
        (2, [(2, 3, 2, 8), (3, 4, 2, 8)]),
        (3, [(5, 7, 4, 16), (0, 0, 0, 0), (0, 0, 0, 0)]),
    ],
)
def test_any_number_of_processes_continues_the_sums_of_two(world_size, sums_of_ranks):
    for rank, expected in enumerate(sums_of_ranks):
        schedule = MilestoneSchedule(3, 8, 0.1, [], 0.1, None, 0.01, 80.0)
        module = Classifier(nn.Identity(), SGD, schedule)
        module.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
        module.on_load_checkpoint({"training": SAVED})
        assert module.train_meter.compute() == expected
