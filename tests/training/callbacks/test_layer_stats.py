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
from src.tables import read_csv
from src.training.callbacks.base import RunCallback
from src.training.callbacks.layer_stats import gradient_norms, record_responses, weight_norms

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


def test_layers_csv_has_a_row_for_each_layer_at_the_first_iteration_and_each_evaluation(tiny):
    run_dir = tiny()
    with open(run_dir.layers, newline="") as file:
        rows = list(csv.DictReader(file))
    layers = [*weighted_layers(resnet(1, "A", 10, "he_fan_in"))]
    assert [row["layer"] for row in rows] == 4 * layers
    assert [row["iteration"] for row in rows] == [i for i in "1368" for _ in layers]
    assert all(float(row["gradient"]) > 0 for row in rows)
    # No batch is evaluated at the first iteration, and no batch norm follows the last layer.
    without = [row["layer"] for row in rows if not row["response"]]
    assert without == [*layers, *(3 * ["fc"])]


class NormsOfEachIteration(RunCallback):
    """Remember the norms of weights before, and of gradients after each iteration."""

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_train_batch_start(self, trainer, module, *_):
        self.weights.append(weight_norms(module.net))

    def on_train_batch_end(self, trainer, module, *_):
        self.gradients.append(gradient_norms(module.net))


@pytest.mark.parametrize("compile", ["none", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("eval_every", [1, 3])
def test_gradients_of_the_first_iteration_are_scaled_by_the_weights_it_began_with(
    tiny, compile, eval_every
):
    norms = NormsOfEachIteration()
    overrides = f"compile={compile}", f"recipe.eval_every={eval_every}", "recipe.iterations=3"
    rows = read_csv(tiny(*overrides, callbacks=[norms]).layers)
    first = [row for row in rows if row["iteration"] == 1]
    assert [row["layer"] for row in first] == [*norms.weights[0]]
    for row in first:
        layer = row["layer"]
        assert row["gradient"] == norms.gradients[0][layer]
        expected = norms.gradients[0][layer] * norms.weights[0][layer]
        assert row["scaled_gradient"] == pytest.approx(expected, rel=1e-12)
        assert norms.weights[0][layer] != norms.weights[1][layer]
    assert any(row["response"] for row in first) == (eval_every == 1)


def test_a_scaled_gradient_does_not_depend_on_the_scale_of_the_weights():
    scaled = []
    for factor in (1, 8):
        torch.manual_seed(0)
        net = plain(1, 10, "he_fan_in")
        with torch.no_grad():
            net.layer1[0].conv1.weight.mul_(factor)
        F.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
        norms = gradient_norms(net), weight_norms(net)
        scaled.append([by_layer["layer1.0.conv1"] for by_layer in norms])
    (gradient, weight), (other_gradient, other_weight) = scaled
    assert other_weight == pytest.approx(8 * weight)
    assert 8 * other_gradient == pytest.approx(gradient, rel=1e-3)
