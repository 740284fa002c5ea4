import pytest
import torch
from conftest import compose_run
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from src.cli import CONF
from src.models.complexity import multiply_adds, parameters
from src.models.preact_resnet import (
    PreactivationBlock,
    PreactivationBottleneck,
    preactivation,
    preactivation_bottleneck,
)

NETS = {  # depth, parameters, multiply-adds; for 164 and 1001 the paper prints 1.7M and 10.2M without batch norm
    "preactivation": (20, 269722, 40551040),
    "preactivation110": (110, 1727962, 252887680),
    "preactivation164": (164, 1703258, 244500992),
    "preactivation1001": (1001, 10327706, 1487849984),
}
assert set(NETS) == {path.stem for path in (CONF / "model").glob("preactivation*.yaml")}
BLOCKS = [PreactivationBlock, PreactivationBottleneck]


def build(*overrides, device="meta"):
    with torch.device(device):
        return instantiate(compose_run(*overrides).model, _convert_="all")


@pytest.mark.parametrize("name", NETS)
def test_every_config_has_the_papers_counts(name):
    net = build(f"model={name}")
    assert (net.depth, parameters(net), multiply_adds(net, (3, 32, 32))) == NETS[name]


@pytest.mark.parametrize("n", [1, 2, 18])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_parameters_by_formula(n, shortcut):
    convolutions = 9 * (3 * 16 + 2 * n * 16**2 + (2 * n - 1) * (32**2 + 64**2) + 16 * 32 + 32 * 64)
    # A norm has a scale and a shift for each channel. Each takes the channels that come in, the last one the last 64.
    norms = 2 * (16 * 2 * n + 16 + 32 * (2 * n - 1) + 32 + 64 * (2 * n - 1) + 64)
    projections = (16 * 32 + 32 * 64) * (shortcut == "B")
    net = build("model=preactivation", f"n={n}", f"model.shortcut={shortcut}")
    assert parameters(net) == convolutions + norms + projections + 64 * 10 + 10
    # Without projections, as many as in the residual net.
    if shortcut == "A":
        assert parameters(net) == parameters(build("model=resnet", f"n={n}"))


def norm_relu(x, norm):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    y = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return y.clamp(min=0)


def shaken(module):
    """Batch norm weights and biases away from 1 and 0, where a mistake would not show."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return module


def reference(block, x, stride, changed):
    """A block in the words of the paper: BN, ReLU, weights; the identity, or a shortcut of the activated input."""
    activated = norm_relu(x, block.bn1) if isinstance(block.bn1, nn.BatchNorm2d) else x
    if isinstance(block, PreactivationBlock):
        y = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
        y = F.conv2d(norm_relu(y, block.bn2), block.conv2.weight, padding=1)
    else:
        y = F.conv2d(activated[:, :, ::stride, ::stride], block.conv1.weight)
        y = F.conv2d(norm_relu(y, block.bn2), block.conv2.weight, padding=1)
        y = F.conv2d(norm_relu(y, block.bn3), block.conv3.weight)
    if not changed:
        return y + x
    if isinstance(block.downsample, nn.Conv2d):
        return y + F.conv2d(activated[:, :, ::stride, ::stride], block.downsample.weight)
    padded = torch.zeros_like(y)
    edge = (y.shape[1] - x.shape[1]) // 2
    padded[:, edge : edge + x.shape[1]] = activated[:, :, ::stride, ::stride]
    return y + padded


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("stride", "in_channels"), [(1, 32), (2, 32), (1, 16), (2, 16)])
def test_a_block_is_the_papers(make, shortcut, stride, in_channels):
    torch.manual_seed(0)
    width = 32 if make is PreactivationBlock else 8
    block = shaken(make(in_channels, width, stride, 1, shortcut)).double()
    x = torch.randn(4, in_channels, 8, 8, dtype=torch.float64)
    y = block(x)
    assert y.shape == (4, 32, 8 // stride, 8 // stride) and block.out_channels == 32
    torch.testing.assert_close(y, reference(block, x, stride, stride == 2 or in_channels == 16))


@pytest.mark.parametrize("make", BLOCKS)
def test_the_way_through_a_block_is_a_clean_identity(make):
    torch.manual_seed(0)
    block = make(32, 32 if make is PreactivationBlock else 8, 1, 1, "A")
    x = torch.randn(4, 32, 8, 8, requires_grad=True)
    last = block.conv2 if make is PreactivationBlock else block.conv3
    nn.init.zeros_(last.weight)
    y = block(x)
    assert torch.equal(y, x) and y.min() < 0  # no norm and no ReLU after the addition
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.eq(1).all()


@pytest.mark.parametrize(
    ("make", "shortcut"), [(preactivation, "A"), (preactivation, "B"), (preactivation_bottleneck, "B")]
)
def test_the_net_activates_right_after_its_first_layer_and_after_its_last_addition(make, shortcut):
    torch.manual_seed(0)
    net = shaken(make(2, shortcut, 10, "fan_in")).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    x = norm_relu(F.conv2d(images, net.conv1.weight, padding=1), net.bn1)
    sizes = []
    for stage, stride in ((net.layer1, 1), (net.layer2, 2), (net.layer3, 2)):
        changed = stride == 2 or make is preactivation_bottleneck
        x = reference(stage[1], reference(stage[0], x, stride, changed), 1, False)
        sizes.append(tuple(x.shape[1:]))
    expansion = 4 if make is preactivation_bottleneck else 1
    assert sizes == [(16 * expansion, 32, 32), (32 * expansion, 16, 16), (64 * expansion, 8, 8)]
    x = norm_relu(x, net.final[0]).sum((2, 3)) / 64
    torch.testing.assert_close(net(images), x @ net.fc.weight.T + net.fc.bias)


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_reaches_every_layer(name):
    torch.manual_seed(0)
    net = build(f"model={name}", device="cpu")
    F.cross_entropy(net(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("make", [preactivation, preactivation_bottleneck])
def test_recomputing_activations_changes_nothing(make):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    results = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(0)
        net = make(2, "B", 10, "fan_in")
        net.activation_checkpointing = activation_checkpointing
        F.cross_entropy(net(images), labels).backward()
        results.append([*(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_mistakes_name_their_remedy():
    with pytest.raises(ValueError, match=r"n=2.5 .* 6n\+2; .*n=2 \(14 layers\) and n=3 \(20 layers\)"):
        preactivation(2.5, "A", 10, "fan_in")
    with pytest.raises(ValueError, match=r"n=0 .* 9n\+2; .*n=1 \(11 layers\) and n=2 \(20 layers\)"):
        preactivation_bottleneck(0, "B", 10, "fan_in")
    for make in (preactivation, preactivation_bottleneck):
        with pytest.raises(ValueError, match="b is not one of A, B and C; did you mean B"):
            make(3, "b", 10, "fan_in")
    with pytest.raises(InstantiationException, match="unexpected keyword argument 'bottleneck'"):
        build("model=preactivation", "+model.bottleneck=true")
