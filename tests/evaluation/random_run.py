"""Run directories with random weights, for tests that need a finished run but not its training."""

import torch
from hydra.utils import instantiate
from torch import nn

SUMMARY = {
    "iterations": 8,
    "train_images": 1297,
    "parameters": 78042,
    "train_error": 85.9,
    "test_error": 80.2,
    "test_error_top5": 40.6,
    "seconds": 1.5,
    "precision": "bf16-mixed",
    "eval_precision": "32-true",
    "device": "a CPU, 2 cores",
    "devices": 1,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "git_commit": "0123abc",
}


def random_run(run_dir, seed=0):
    """Finish a run as src.train does, but with random weights, and return its net."""
    torch.manual_seed(seed)
    net = instantiate(run_dir.config["model"], _convert_="all").eval()
    for norm in net.modules():
        # No tensor of batch norm keeps its initial value: mixing them up would not show.
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.normal_(tensor, std=0.1)
    # Large scores would make all softmax scores 0 or 1.
    net.fc.weight.data /= 10
    net = net.to(memory_format=torch.channels_last)

    run_dir.create()
    run_dir.last_checkpoint.parent.mkdir()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 8}, run_dir.last_checkpoint)
    run_dir.write_summary(SUMMARY)
    return net
