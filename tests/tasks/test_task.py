"""What all tasks share: sums of several processes, and random numbers of a step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from src.tasks.base import gather
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


@pytest.mark.parametrize(("backend", "gathers_on"), [("nccl", "meta"), ("gloo", "cpu")])
def test_sums_that_lightning_has_moved_to_the_cpu_are_gathered_by_nccl_on_the_gpu(
    monkeypatch, backend, gathers_on
):
    """NCCL has no backend for the CPU; `meta` stands for the GPU."""
    devices = []

    def gather_all_tensors(value, _):
        devices.append(value.device.type)
        return [torch.tensor(2.0), torch.tensor(3.0)]

    monkeypatch.setattr("src.tasks.base.gather_all_tensors", gather_all_tensors)
    monkeypatch.setattr("torch.distributed.get_backend", lambda _: backend)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda value: value.to("meta"))
    parts = gather(torch.tensor(1.0))
    assert devices == [gathers_on]
    assert [(part.item(), part.device.type) for part in parts] == [(2, "cpu"), (3, "cpu")]


def test_a_step_with_dropout_is_a_function_of_seed_iteration_and_rank():
    def loss(seed, iteration, rank=0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.Dropout(), nn.Linear(64, 10))
        module = Classifier(net, seed=seed)
        module.trainer = SimpleNamespace(global_rank=rank)
        batch = torch.ones(4, 64), torch.zeros(4, dtype=torch.int64)
        torch.manual_seed(iteration + 100)  # what a resumed run does not restore
        return module.training_step(batch, iteration).item()

    assert loss(0, 3) == loss(0, 3)
    assert len({loss(0, 3), loss(1, 3), loss(0, 4), loss(0, 3, rank=1)}) == 4
