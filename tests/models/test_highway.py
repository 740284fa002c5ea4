import math

import pytest
import torch
from hydra.errors import InstantiationException
from net_helpers import build_net, check_gradients, complexity
from torch import nn

from src.models.blocks import BasicBlock
from src.models.highway import HighwayBlock, highway
from src.models.resnet import plain


def gates(net):
    return [m.downsample["gate"] for m in net.modules() if isinstance(m, HighwayBlock)]


def set_gates(net, weight, bias):
    for gate in gates(net):
        nn.init.constant_(gate.weight, weight)
        nn.init.constant_(gate.bias, bias)


def copy_layers(net, twin):
    """Copy the layers of a plain net; only the gates are missing there."""
    keys = net.load_state_dict(twin.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(".gate." in key for key in keys.missing_keys)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("n", [1, 3])
def test_highway_net_is_the_residual_net_plus_gates(n, shortcut):
    net = build_net("model=highway", f"n={n}", f"model.shortcut={shortcut}")
    twin = build_net("model=resnet", f"n={n}", f"model.shortcut={shortcut}")
    # The gate of each block is a 1x1 convolution with a bias: channels in and out, output pixels.
    gates = [(16, 16, 1024)] * n + [(16, 32, 256), (32, 64, 64)]
    gates += [(32, 32, 256), (64, 64, 64)] * (n - 1)
    parameters, multiply_adds = complexity(net, 32)
    twin_parameters, twin_multiply_adds = complexity(twin, 32)
    assert parameters - twin_parameters == sum(i * o + o for i, o, _ in gates)
    assert multiply_adds - twin_multiply_adds == sum(math.prod(gate) for gate in gates)
    assert net.depth == twin.depth == 6 * n + 2


def test_highway110_has_a_gate_for_each_shortcut():
    net = build_net("model=highway110")
    assert (net.depth, complexity(net, 32)[0], len(gates(net))) == (110, 1824186, 54)


def test_open_gates_make_the_plain_net():
    torch.manual_seed(0)
    net, twin = highway(2, "A", -6.0, 10, "he_fan_in"), plain(2, 10, "he_fan_in")
    copy_layers(net, twin)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.allclose(net(images), twin(images), atol=0.1)
    set_gates(net, 0, 100)
    assert torch.equal(net(images), twin(images))


def test_closed_gates_leave_the_first_layer_and_the_classifier():
    torch.manual_seed(0)
    net = highway(2, "A", -6.0, 10, "he_fan_in").eval()
    set_gates(net, 0, -200)
    images = torch.randn(4, 3, 16, 16)
    x = net.bn1(net.conv1(images)).relu()[:, :, ::4, ::4].mean((2, 3))
    # The two padding shortcuts put 8 and 16 zero channels before the 16 of the first layer.
    expected = net.fc.bias + x @ net.fc.weight[:, 24:40].T
    torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_a_gate_at_one_half_halves_the_residual_block(shortcut):
    torch.manual_seed(0)
    block, twin = HighwayBlock(16, 32, 2, 1, shortcut), BasicBlock(16, 32, 2, 1, shortcut)
    block.downsample["shortcut"] = twin.downsample
    block.load_state_dict(
        twin.state_dict() | block.downsample.state_dict(prefix="downsample."), strict=False
    )
    set_gates(block, 0, 0)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), twin(x) / 2)


def test_the_gate_has_a_value_for_each_channel_and_pixel():
    torch.manual_seed(0)
    block = HighwayBlock(3, 3, 1, 1, "A")
    nn.init.constant_(block.downsample["gate"].bias, -1)
    x, branch = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)  # nothing for the ReLU to cut
    block.branch = lambda _: branch
    y = block(x)
    for image, channel, row, column in ((0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3)):
        logit = -1 + block.downsample["gate"].weight[channel, :, 0, 0] @ x[image, :, row, column]
        transform = 1 / (1 + torch.exp(-logit))
        at = (image, channel, row, column)
        torch.testing.assert_close(y[at], branch[at] * transform + x[at] * (1 - transform))


def test_blocks_start_near_the_identity():
    torch.manual_seed(0)
    net = highway(1, "A", -6.0, 10, "he_fan_in")
    assert all(gate.bias.eq(-6).all() for gate in gates(net))
    assert all(gate.weight.std() > 0 for gate in gates(net))
    block = net.layer1[0]
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    y = block(x)
    torch.testing.assert_close(y, x, rtol=0.1, atol=0.1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    # That of the shortcut: the branch alone has almost none.
    assert gradient.mean().item() == pytest.approx(1, abs=0.1)
    set_gates(net, 0, 100)
    (gradient,) = torch.autograd.grad(block(x).sum(), x)
    assert gradient.mean().item() == pytest.approx(0, abs=0.1)  # batch norm makes the sum constant


def test_gradient_reaches_every_layer_and_gate():
    torch.manual_seed(0)
    check_gradients(highway(2, "A", -6.0, 10, "he_fan_in"))


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_bf16_autocast_gives_about_the_same_scores(shortcut):
    torch.manual_seed(0)
    net = highway(1, shortcut, -1.0, 10, "he_fan_in")
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = net(images)
    torch.testing.assert_close(scores.float(), net(images), rtol=0.1, atol=0.1)


def test_errors_name_what_is_valid():
    with pytest.raises(ValueError, match=r"n=2.5 .*n=2 \(14 layers\)"):
        highway(2.5, "A", -6.0, 10, "he_fan_in")
    for shortcut in ("b", None):
        with pytest.raises(ValueError, match="not one of A, B and C"):
            highway(3, shortcut, -6.0, 10, "he_fan_in")
    for bias in (0.5, math.nan):
        with pytest.raises(ValueError, match="must be 0 or less"):
            highway(3, "A", bias, 10, "he_fan_in")
    assert gates(highway(1, "A", 0.0, 10, "he_fan_in"))[0].bias.abs().max() == 0
    with pytest.raises(InstantiationException, match="unexpected keyword argument 'gate'"):
        build_net("model=highway", "+model.gate=1")
