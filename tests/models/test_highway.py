import math

import pytest
import torch
from conftest import compose_run
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from src.models.complexity import multiply_adds, parameters
from src.models.highway import GatedShortcut, HighwayBlock, highway
from src.models.resnet import BasicBlock, plain


def build(*overrides, device="meta"):
    with torch.device(device):
        return instantiate(compose_run(*overrides).model, _convert_="all")


def gates_of(net):
    return [module.gate for module in net.modules() if isinstance(module, GatedShortcut)]


def force(net, weight, bias):
    for gate in gates_of(net):
        nn.init.constant_(gate.weight, weight)
        nn.init.constant_(gate.bias, bias)


def give_layers(net, twin):
    """Gives `net` the layers of its twin; the gates are all that is left over."""
    found = net.load_state_dict(twin.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(".gate." in key for key in found.missing_keys)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_the_gates_are_all_that_is_added_to_the_residual_twin(n, shortcut):
    net = build("model=highway", f"n={n}", f"model.shortcut={shortcut}")
    twin = build("model=resnet", f"n={n}", f"model.shortcut={shortcut}")
    # Of each block, a 1x1 convolution of its input with a bias: its channels in and out, its pixels out.
    blocks = [(16, 16, 1024)] * n + [(16, 32, 256), (32, 64, 64)] + [(32, 32, 256), (64, 64, 64)] * (n - 1)
    assert parameters(net) - parameters(twin) == sum(i * o + o for i, o, _ in blocks)
    size = (3, 32, 32)
    assert multiply_adds(net, size) - multiply_adds(twin, size) == sum(math.prod(block) for block in blocks)
    assert net.depth == twin.depth == 6 * n + 2


def test_highway110_has_a_gate_for_each_shortcut():
    net = build("model=highway110")
    assert (net.depth, parameters(net), len(gates_of(net))) == (110, 1824186, 54)


def test_an_open_gate_makes_the_plain_net():
    torch.manual_seed(0)
    net, twin = highway(2, "A", -6.0, 10, "fan_in"), plain(2, 10, "fan_in")
    give_layers(net, twin)
    images = torch.randn(4, 3, 32, 32)
    assert not torch.allclose(net(images), twin(images), atol=0.1)
    force(net, 0, 100)
    assert torch.equal(net(images), twin(images))


def test_a_closed_gate_makes_the_net_a_first_layer_and_a_classifier():
    torch.manual_seed(0)
    net = highway(2, "A", -6.0, 10, "fan_in").eval()
    force(net, 0, -200)
    images = torch.randn(4, 3, 32, 32)
    x = net.bn1(net.conv1(images)).relu()[:, :, ::4, ::4].mean((2, 3))
    expected = net.fc.bias + x @ net.fc.weight[:, 24:40].T  # two shortcuts pad 8 and 16 channels on either side
    torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_a_gate_at_one_half_halves_the_residual_block(shortcut):
    torch.manual_seed(0)
    block, twin = HighwayBlock(16, 32, 2, 1, shortcut, -6.0), BasicBlock(16, 32, 2, 1, shortcut)
    block.downsample.shortcut = twin.downsample
    block.load_state_dict(twin.state_dict() | block.downsample.state_dict(prefix="downsample."), strict=False)
    force(block, 0, 0)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), twin(x) / 2)


def test_the_gate_depends_on_the_input_pixel_by_pixel_and_channel_by_channel():
    torch.manual_seed(0)
    shortcut = GatedShortcut(nn.Identity(), 3, 3, 1, -1.0)
    x, branch = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    y = shortcut(x, branch)
    for image, channel, row, column in ((0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3)):
        seen = sum(shortcut.gate.weight[channel, i, 0, 0] * x[image, i, row, column] for i in range(3))
        transform = 1 / (1 + torch.exp(1 - seen))
        at = (image, channel, row, column)
        torch.testing.assert_close(y[at], branch[at] * transform + x[at] * (1 - transform))


def test_a_net_starts_by_carrying():
    torch.manual_seed(0)
    net = highway(1, "A", -6.0, 10, "fan_in")
    assert all(gate.bias.eq(-6).all() and gate.weight.std() > 0 for gate in gates_of(net))
    block = net.layer1[0]
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    y = block(x)
    torch.testing.assert_close(y, x, rtol=0.1, atol=0.1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.mean().item() == pytest.approx(1, abs=0.1)  # through the carry: the branch alone has almost none
    force(net, 0, 100)
    (gradient,) = torch.autograd.grad(block(x).sum(), x)
    assert gradient.mean().item() == pytest.approx(0, abs=0.1)  # batch norm takes away what the sum could gain


def test_every_gate_learns():
    torch.manual_seed(0)
    net = highway(2, "A", -6.0, 10, "fan_in")
    nn.functional.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_half_precision_is_no_obstacle(shortcut):
    torch.manual_seed(0)
    net = highway(1, shortcut, -1.0, 10, "fan_in")
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = net(images)
    torch.testing.assert_close(scores.float(), net(images), rtol=0.1, atol=0.1)


def test_recomputing_activations_changes_nothing():
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    results = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(0)
        net = highway(1, "A", -6.0, 10, "fan_in")
        net.activation_checkpointing = activation_checkpointing
        nn.functional.cross_entropy(net(images), labels).backward()
        results.append([*(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_mistakes_name_their_remedy():
    with pytest.raises(ValueError, match=r"n=2.5 .*n=2 \(14 layers\)"):
        highway(2.5, "A", -6.0, 10, "fan_in")
    for shortcut in ("b", None):
        with pytest.raises(ValueError, match="not one of A, B and C"):
            highway(3, shortcut, -6.0, 10, "fan_in")
    for bias in (0.5, math.nan):
        with pytest.raises(ValueError, match="must not be above 0"):
            highway(3, "A", bias, 10, "fan_in")
    assert gates_of(highway(1, "A", 0.0, 10, "fan_in"))[0].bias.abs().max() == 0
    with pytest.raises(InstantiationException, match="unexpected keyword argument 'gate'"):
        build("model=highway", "+model.gate=1")
