"""Responses and gradients of single layers."""

import csv

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.models.complexity import weighted_layers
from src.models.preact_resnet import preact_resnet, preact_resnet_bottleneck
from src.models.resnet import plain, resnet, resnet_imagenet
from src.models.vgg import VGG
from src.training.callbacks.layer_stats import gradient_norms, record_responses

NETS = {
    "plain8": (lambda: plain(1, 10, "he_fan_in"), 7),
    "resnet8": (lambda: resnet(1, "B", 10, "he_fan_in"), 7),
    "resnet50": (lambda: resnet_imagenet(50, "B", True, 1, 64, (), False, 10, "he_fan_in"), 16),
    "preactivation8": (lambda: preact_resnet(1, "B", 10, "he_fan_in"), 7),
    "preactivation11": (lambda: preact_resnet_bottleneck(1, "B", 10, "he_fan_in"), 4),
}


@pytest.mark.parametrize("name", NETS)
def test_each_weighted_layer_has_a_gradient_norm_and_each_3x3_layer_a_response(name):
    make, responding = NETS[name]
    net = make()
    F.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    norms = gradient_norms(net)
    assert len(norms) == net.depth
    assert (next(iter(norms)), [*norms][-1]) == ("conv1", "fc")
    assert not [layer for layer in norms if "downsample" in layer]
    for layer, norm in norms.items():
        assert norm == pytest.approx(
            net.get_submodule(layer).weight.grad.square().sum().sqrt().item(), rel=1e-4
        )
    with record_responses(net.eval()) as responses:
        net(torch.randn(4, 3, 32, 32))
    assert len(responses) == responding
    assert set(responses) < set(weighted_layers(net))


def test_a_response_is_measured_after_batch_norm_and_before_addition_and_relu():
    net = resnet(1, "A", 10, "he_fan_in").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    images = torch.randn(8, 3, 8, 8)
    with record_responses(net) as responses:
        net(images)
    block = net.layer1[0]
    x = F.relu(net.bn1(net.conv1(images)))
    first = block.bn1(block.conv1(x))
    second = block.bn2(block.conv2(F.relu(first)))
    assert responses["conv1"] == pytest.approx(net.bn1(net.conv1(images)).std().item())
    assert responses["layer1.0.conv1"] == pytest.approx(first.std().item())
    assert responses["layer1.0.conv2"] == pytest.approx(second.std().item())


def test_the_responses_of_a_pre_activation_block_are_the_outputs_of_its_convolutions():
    net = preact_resnet(1, "A", 10, "he_fan_in").eval()
    images = torch.randn(8, 3, 8, 8)
    with record_responses(net) as responses:
        net(images)
    block = net.layer1[0]
    stem = net.bn1(net.conv1(images))
    first = block.conv1(F.relu(stem))
    second = block.conv2(F.relu(block.bn2(first)))
    assert responses["conv1"] == pytest.approx(stem.std().item())
    assert responses["layer1.0.conv1"] == pytest.approx(first.std().item())
    assert responses["layer1.0.conv2"] == pytest.approx(second.std().item())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_responses_of_a_vgg_net_are_what_its_relus_take(batch_norm):
    net = VGG([[3], [3, 1]], (2, 3), 4, batch_norm, 0.5, 10, "he_fan_in").train()
    images, inputs = torch.randn(2, 3, 28, 28), []
    for module in net.features:
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].std().item()))
    with record_responses(net) as responses:
        net(images)
    assert [*responses.values()] == pytest.approx(inputs[:2])  # the third layer is 1x1


def test_an_error_leaves_no_hook_on_the_net():
    net = plain(1, 10, "he_fan_in")
    with pytest.raises(ZeroDivisionError), record_responses(net):
        raise ZeroDivisionError
    assert not [module for module in net.modules() if module._forward_hooks]


def test_layers_csv_has_a_row_for_each_layer_at_each_evaluation(tiny):
    run_dir = tiny()
    with open(run_dir.layers, newline="") as file:
        rows = list(csv.DictReader(file))
    layers = [*weighted_layers(resnet(1, "A", 10, "he_fan_in"))]
    assert [row["layer"] for row in rows] == 3 * layers
    assert [row["iteration"] for row in rows] == [i for i in "368" for _ in layers]
    assert all(float(row["gradient"]) > 0 for row in rows)
    # The fully connected layer has no response: no batch norm follows it.
    assert [row["layer"] for row in rows if not row["response"]] == 3 * ["fc"]
