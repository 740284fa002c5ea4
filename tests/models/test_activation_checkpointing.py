import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.models.activation_checkpointing import checkpointed_forward
from src.models.complexity import activation_bytes
from src.models.highway import highway
from src.models.preact_resnet import preact_resnet, preact_resnet_bottleneck
from src.models.resnet import plain, resnet
from src.models.vgg import VGG

NETS = {
    "plain": lambda: plain(1, 10, "he_fan_in"),
    "resnet": lambda: resnet(1, "B", 10, "he_fan_in"),
    "highway": lambda: highway(1, "A", -6.0, 10, "he_fan_in"),
    "preactivation": lambda: preact_resnet(1, "B", 10, "he_fan_in"),
    "preactivation_bottleneck": lambda: preact_resnet_bottleneck(1, "B", 10, "he_fan_in"),
    "vgg": lambda: VGG([[3], [3, 1]], (4, 6), 8, False, 0.5, 10, "xavier"),
    "vgg_bn": lambda: VGG([[3], [3, 1]], (4, 6), 8, True, 0.5, 10, "xavier"),
}


def train_step(make, activation_checkpointing):
    """Loss, gradients and buffers after one step, and the memory of the activations."""
    torch.manual_seed(0)
    net = make()
    net.activation_checkpointing = activation_checkpointing
    loss = F.cross_entropy(net(torch.randn(4, 3, 28, 28)), torch.arange(4))
    loss.backward()
    tensors = [loss, *(p.grad for p in net.parameters()), *net.buffers()]
    return tensors, activation_bytes(net, (3, 28, 28))


@pytest.mark.parametrize("name", NETS)
def test_checkpointing_changes_only_the_memory(name):
    expected, expected_memory = train_step(NETS[name], activation_checkpointing=False)
    tensors, memory = train_step(NETS[name], activation_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert memory < expected_memory / 2


@pytest.mark.parametrize("norm_class", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_second_forward_pass_updates_no_running_statistics(norm_class, momentum):
    norm = norm_class(3, momentum=momentum)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = checkpointed_forward(nn.Sequential(norm, nn.ReLU()), x)
    after_forward = [buffer.clone() for buffer in norm.buffers()]
    assert norm.num_batches_tracked == 1

    y.sum().backward()
    assert norm.momentum == momentum
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), after_forward, strict=True))


def test_evaluation_keeps_nothing_and_needs_no_checkpointing(monkeypatch):
    net = resnet(1, "A", 10, "he_fan_in").eval()
    images = torch.randn(2, 3, 16, 16)
    expected = net(images)
    net.activation_checkpointing = True
    monkeypatch.setattr("src.models.residual_net.checkpointed_forward", None)
    assert torch.equal(net(images), expected)
