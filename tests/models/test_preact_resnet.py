import pytest
import torch
from hydra.errors import InstantiationException
from net_helpers import build_net, check_gradients, complexity, randomize_batch_norm
from torch import nn
from torch.nn import functional as F

from src.config import CONF
from src.models.complexity import count_parameters
from src.models.preact_resnet import (
    PreActBlock,
    PreActBottleneck,
    preact_resnet,
    preact_resnet_bottleneck,
)

# Depth, parameters, multiply-adds. For 164 and 1001 layers the paper prints 1.7M and, without batch
# norm, 10.2M parameters.
NETS = {
    "preactivation": (20, 269722, 40551040),
    "preactivation110": (110, 1727962, 252887680),
    "preactivation164": (164, 1703258, 244500992),
    "preactivation1001": (1001, 10327706, 1487849984),
}
BLOCKS = [PreActBlock, PreActBottleneck]


def test_every_config_is_known():
    assert set(NETS) == {path.stem for path in (CONF / "model").glob("preactivation*.yaml")}


@pytest.mark.parametrize("name", NETS)
def test_every_config_has_the_counts_of_its_paper(name):
    net = build_net(f"model={name}")
    assert (net.depth, *complexity(net, 32)) == NETS[name]


@pytest.mark.parametrize("n", [1, 2, 18])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_parameters_follow_the_formula(n, shortcut):
    weights = 3 * 16 + 2 * n * 16**2 + (2 * n - 1) * (32**2 + 64**2) + 16 * 32 + 32 * 64
    # Batch norm has a scale and a shift for each channel: of each block's input and middle, and of
    # the last output.
    norms = 2 * (16 * 2 * n + 16 + 32 * (2 * n - 1) + 32 + 64 * (2 * n - 1) + 64)
    projections = (16 * 32 + 32 * 64) * (shortcut == "B")
    net = build_net("model=preactivation", f"n={n}", f"model.shortcut={shortcut}")
    parameters = count_parameters(net)
    assert parameters == 9 * weights + norms + projections + 64 * 10 + 10
    # Without projections, as many as in the residual net.
    if shortcut == "A":
        assert parameters == count_parameters(build_net("model=resnet", f"n={n}"))


def norm_relu(x, norm):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    y = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(
        -1, 1, 1
    )
    return y.clamp(min=0)


def reference(block, x, stride, changed):
    """The formula of a block; where the shape changes, the shortcut takes the activated input."""
    activated = norm_relu(x, block.bn1) if isinstance(block.bn1, nn.BatchNorm2d) else x
    if isinstance(block, PreActBlock):
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
def test_block_follows_the_formula_of_the_paper(make, shortcut, stride, in_channels):
    torch.manual_seed(0)
    width = 32 if make is PreActBlock else 8
    block = randomize_batch_norm(make(in_channels, width, stride, 1, shortcut)).double()
    x = torch.randn(4, in_channels, 8, 8, dtype=torch.float64)
    y = block(x)
    assert y.shape == (4, block.out_channels, 8 // stride, 8 // stride)
    assert block.out_channels == 32
    torch.testing.assert_close(y, reference(block, x, stride, stride == 2 or in_channels == 16))


@pytest.mark.parametrize("make", BLOCKS)
def test_shortcut_is_the_identity_with_nothing_after_the_addition(make):
    torch.manual_seed(0)
    block = make(32, 32 if make is PreActBlock else 8, 1, 1, "A")
    x = torch.randn(4, 32, 8, 8, requires_grad=True)
    last = block.conv2 if make is PreActBlock else block.conv3
    nn.init.zeros_(last.weight)
    y = block(x)
    assert torch.equal(y, x)  # of both signs, so no ReLU
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.eq(1).all()


@pytest.mark.parametrize(
    ("make", "shortcut"),
    [(preact_resnet, "A"), (preact_resnet, "B"), (preact_resnet_bottleneck, "B")],
)
def test_net_has_an_activation_after_its_first_layer_and_after_its_last_addition(make, shortcut):
    torch.manual_seed(0)
    net = randomize_batch_norm(make(2, shortcut, 10, "he_fan_in")).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = norm_relu(F.conv2d(images, net.conv1.weight, padding=1), net.bn1)
    sizes = []
    for stage, stride in ((net.layer1, 1), (net.layer2, 2), (net.layer3, 2)):
        changed = stride == 2 or make is preact_resnet_bottleneck
        x = reference(stage[1], reference(stage[0], x, stride, changed), 1, False)
        sizes.append(tuple(x.shape[1:]))
    expansion = 4 if make is preact_resnet_bottleneck else 1
    assert sizes == [(16 * expansion, 32, 32), (32 * expansion, 16, 16), (64 * expansion, 8, 8)]
    x = norm_relu(x, net.final[0]).sum((2, 3)) / 64
    torch.testing.assert_close(net(images), x @ net.fc.weight.T + net.fc.bias)


@pytest.mark.parametrize(
    "name",
    [
        "preactivation",
        "preactivation164",
        pytest.param("preactivation1001", marks=pytest.mark.slow),
    ],
)
def test_gradient_reaches_every_layer(name):
    torch.manual_seed(0)
    check_gradients(build_net(f"model={name}", device="cpu"))


def test_errors_name_what_is_valid():
    with pytest.raises(
        ValueError, match=r"n=2.5 .* 6n\+2; .*n=2 \(14 layers\) and n=3 \(20 layers\)"
    ):
        preact_resnet(2.5, "A", 10, "he_fan_in")
    with pytest.raises(
        ValueError, match=r"n=0 .* 9n\+2; .*n=1 \(11 layers\) and n=2 \(20 layers\)"
    ):
        preact_resnet_bottleneck(0, "B", 10, "he_fan_in")
    for make in (preact_resnet, preact_resnet_bottleneck):
        with pytest.raises(ValueError, match="b is not one of A, B and C; did you mean B"):
            make(3, "b", 10, "he_fan_in")
    with pytest.raises(InstantiationException, match="unexpected keyword argument 'bottleneck'"):
        build_net("model=preactivation", "+model.bottleneck=true")
