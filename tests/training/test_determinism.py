"""Equal bits from the same command: `trainer.deterministic`."""

import os

import pytest
import torch
from conftest import TINY
from ranks import said_in_a_run, together
from torch import nn

from src.training.sweep import Job, Sweep


class Telling(nn.Module):
    """A small net that prints, as it is made, what PyTorch was told of determinism."""

    depth, activation_checkpointing = 1, False

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        on, warn = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        print(
            "told",
            on,
            warn,
            torch.backends.cudnn.benchmark,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


TOLD = {
    "false": "told False False True None",
    "warn": "told True True False :4096:8",
    "true": "told True False False :4096:8",
}


def test_the_key_does_all_of_it_in_each_run_of_a_sweep_before_the_net_is_made(find, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    target = f"model._target_={__name__}.Telling"
    jobs = [
        Job(find(*TINY, target, f"seed={seed}", f"trainer.deterministic={word}"), [])
        for seed, word in enumerate(TOLD)
    ]
    Sweep(jobs, ["cpu"], 1).run()
    for job, told in zip(jobs, TOLD.values(), strict=True):
        log = (job.folder.path / "log.txt").read_text()
        assert [line for line in log.splitlines() if line.startswith("told")] == [told]


@pytest.mark.fault_injection(
    "bits", "the same command twice in fresh processes, with trainer.deterministic=true"
)
@pytest.mark.parametrize("where", ["cpu", "two cpus", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_same_command_in_fresh_processes_gives_equal_bits(find, tmp_path, where):
    devices = 2 if where == "two cpus" else 1
    overrides = [
        *TINY,
        "trainer.deterministic=true",
        f"trainer.accelerator={where.removeprefix('two ').rstrip('s')}",
    ]
    found = []
    for name in ("one", "other"):
        folder = find(*overrides, f"trainer.devices={devices}", f"output_dir={tmp_path}/{name}")
        together(devices, said_in_a_run, folder)
        state = torch.load(folder.last_checkpoint, weights_only=True)
        tensors = [*state["state_dict"].values()]
        tensors += [of["momentum_buffer"] for of in state["optimizer_states"][0]["state"].values()]
        found.append(
            [
                folder.metrics.read_bytes(),
                folder.layers.read_bytes(),
                *(t.numpy().tobytes() for t in tensors),
            ]
        )
    assert len(found[0]) > 40 and found[0] == found[1]
