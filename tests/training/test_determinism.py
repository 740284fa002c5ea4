"""`trainer.deterministic`: bitwise identical results from the same command."""

import os

import pytest
import torch
from conftest import TINY
from ranks import run_on_ranks, train_and_capture
from torch import nn

from src import train
from src.training.sweep import Job, Sweep


class ReportingNet(nn.Module):
    """A small net that prints PyTorch's settings of determinism when it is built."""

    depth, activation_checkpointing = 1, False

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        print(
            "settings",
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


# deterministic algorithms, warnings only, cuDNN benchmark, cuBLAS workspace
SETTINGS = {
    "false": "settings False False True None",
    "warn": "settings True True False :4096:8",
    "true": "settings True False False :4096:8",
}


def test_each_run_of_a_sweep_sets_determinism_before_it_builds_its_net(find):
    target = f"model._target_={__name__}.ReportingNet"
    jobs = [
        Job(find(*TINY, target, f"seed={seed}", f"trainer.deterministic={value}"), [])
        for seed, value in enumerate(SETTINGS)
    ]
    Sweep(jobs, ["cpu"], 1, train.run_in_sweep).run()
    for job, settings in zip(jobs, SETTINGS.values(), strict=True):
        log = (job.run_dir.path / "log.txt").read_text()
        assert [line for line in log.splitlines() if line.startswith("settings")] == [settings]


@pytest.mark.fault_injection(
    "bits", "the same command twice in new processes, with trainer.deterministic=true"
)
@pytest.mark.parametrize(
    ("accelerator", "world_size"),
    [("cpu", 1), ("cpu", 2), pytest.param("gpu", 1, marks=pytest.mark.gpu)],
)
def test_the_same_command_in_new_processes_is_bit_exact(find, tmp_path, accelerator, world_size):
    overrides = [
        *TINY,
        "trainer.deterministic=true",
        f"trainer.accelerator={accelerator}",
        f"trainer.devices={world_size}",
    ]
    results = []
    for name in ("one", "other"):
        run_dir = find(*overrides, f"output_dir={tmp_path}/{name}")
        run_on_ranks(world_size, train_and_capture, run_dir)
        checkpoint = torch.load(run_dir.last_checkpoint, weights_only=True)
        momenta = checkpoint["optimizer_states"][0]["state"].values()
        tensors = [
            *checkpoint["state_dict"].values(),
            *(momentum["momentum_buffer"] for momentum in momenta),
        ]
        files = [run_dir.metrics.read_bytes(), run_dir.layers.read_bytes()]
        results.append([*files, *(tensor.cpu().numpy().tobytes() for tensor in tensors)])
    assert len(results[0]) > 40
    assert results[0] == results[1]
