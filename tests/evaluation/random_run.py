"""Run directories with random weights, for tests that need a finished run but not its training."""

import torch
from hydra.utils import instantiate
from torch import nn


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
    run_dir.write_summary({"iterations": 8})
    return net
