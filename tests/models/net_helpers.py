"""Helpers of the tests of the nets."""

import torch
from conftest import compose_run
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from src.models.complexity import count_multiply_adds, count_parameters


def build_net(*overrides, device="meta"):
    """The net of a command line; on the meta device its tensors have shapes and no values."""
    with torch.device(device):
        return instantiate(compose_run(*overrides).model, _convert_="all")


def complexity(net, image_size):
    return count_parameters(net), count_multiply_adds(net, (3, image_size, image_size))


def check_gradients(net):
    """Check that every parameter has a finite gradient that is not all zero."""
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(net(images), torch.arange(4)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def randomize_batch_norm(net, statistics=False):
    """Move batch norm away from its initial ones and zeros, which would hide errors."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, 0.5, 1.0)
            if statistics:
                module.running_mean.uniform_(0.5, 1.0)
                module.running_var.uniform_(0.5, 1.0)
    return net


def score_by_convolutions(net, images):
    """Apply the fc layers of a VGG net as a 7x7 and two 1x1 convolutions; average the scores.

    That is the dense testing of Sec. 3.2 of its paper. torchvision's nets pool the last map of
    larger images to 7x7 instead.
    """
    first, second, third = (net.classifier[i] for i in (0, 3, 6))
    x = net.features(images)
    x = F.relu(F.conv2d(x, first.weight.view(-1, x.shape[1], 7, 7), first.bias))
    x = F.relu(F.conv2d(x, second.weight[:, :, None, None], second.bias))
    return F.conv2d(x, third.weight[:, :, None, None], third.bias).mean((2, 3))
