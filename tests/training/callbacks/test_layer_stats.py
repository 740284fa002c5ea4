"""Responses and gradients of single layers."""

import csv
from functools import partial
from itertools import product

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
from src.training.callbacks.layer_stats import gradient_norms, record_signals, weight_norms

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
    with record_signals(net.eval()) as (responses, _):
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
    with record_signals(net) as (responses, _):
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
    with record_signals(net) as (responses, _):
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
    with record_signals(net) as (responses, _):
        net(images)
    assert [*responses.values()] == pytest.approx(inputs[:2])  # the third layer is 1x1


@pytest.mark.parametrize("norm", ["batch", "none", "group"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_signals_are_those_of_the_forward_and_of_the_backward_pass(norm, checkpointing):
    torch.manual_seed(0)
    net = resnet(1, "A", 10, "he_fan_in", norm)
    net.activation_checkpointing = checkpointing
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    with record_signals(net) as (forward, backward):
        F.cross_entropy(net(images), labels).backward()
    assert [*forward] == [*weighted_layers(net)][:-1]
    assert {*forward} == {*backward}

    def norm_of(conv, norm, x):
        return conv(x) if norm == "none" else norm(conv(x))

    responses = [net.bn1(net.conv1(images))]
    x = F.relu(responses[0])
    for block in net.blocks():
        responses.append(block.bn1(block.conv1(x)))
        responses.append(block.bn2(block.conv2(F.relu(responses[-1]))))
        x = F.relu(responses[-1] + block.downsample(x))
    loss = F.cross_entropy(net.fc(x.mean((2, 3))), labels)
    gradients = torch.autograd.grad(loss, responses)
    assert [*forward.values()] == pytest.approx([r.std().item() for r in responses], rel=1e-4)
    by_layer = [backward[layer] for layer in forward]
    assert by_layer == pytest.approx([g.std().item() for g in gradients], rel=1e-4)


def last_to_first(make, init, norm):
    """Return how much the signals of a net change from its first layer to its last one."""
    torch.manual_seed(0)
    net = make(n=5, num_classes=10, init=init, norm=norm)
    with record_signals(net) as signals:
        loss = F.cross_entropy(net(torch.randn(16, 3, 16, 16)), torch.arange(16) % 10)
        loss.backward()
    return [stds["layer3.4.conv2"] / stds["conv1"] for stds in signals]


def test_signals_vanish_or_explode_by_the_initialization_unless_there_is_batch_norm():
    """The claims of experiment=initialization and experiment=batch_norm, in miniature."""
    residual = partial(resnet, shortcut="A")
    forward, backward = last_to_first(plain, "gaussian_0.01", "none")
    assert forward < 1e-20 < 1e20 < backward  # the backward signal runs from the last layer on
    forward, backward = last_to_first(plain, "he_fan_in", "none")
    assert 0.01 < forward < 1 < backward < 100
    forward, backward = last_to_first(residual, "he_fan_in", "none")
    assert backward < 0.1 < 10 < forward  # each block adds its branch to the signal
    for make, init in product((plain, residual), ("gaussian_0.01", "he_fan_in")):
        forward, backward = last_to_first(make, init, "batch")
        assert forward == pytest.approx(1, rel=0.01)
        assert 1e-3 < backward < 1


def test_an_error_leaves_no_hook_on_the_net():
    net = plain(1, 10, "he_fan_in")
    with pytest.raises(ZeroDivisionError), record_signals(net):
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


@pytest.mark.parametrize("eval_every", [1, 3])
def test_the_signals_of_the_first_iteration_are_in_its_rows_alone(tiny, eval_every):
    rows = read_csv(tiny(f"recipe.eval_every={eval_every}", "recipe.iterations=3").layers)
    signals = {"forward_std", "backward_std"}
    with_signals = [row for row in rows if any(row[column] for column in signals)]
    convolutions = [*weighted_layers(resnet(1, "A", 10, "he_fan_in"))][:-1]
    assert [row["layer"] for row in with_signals] == convolutions
    assert {row["iteration"] for row in with_signals} == {1}
    # Batch norm makes every response one of variance 1, before its weights are trained.
    assert [row["forward_std"] for row in with_signals] == pytest.approx([1] * 7, rel=1e-3)
    assert all(row["backward_std"] > 0 for row in with_signals)


@pytest.mark.slow
def test_a_compiled_net_has_no_hooks_and_no_signals(tiny):
    rows = read_csv(tiny("compile=inductor", "recipe.iterations=2").layers)
    assert not any(row["forward_std"] for row in rows)


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
