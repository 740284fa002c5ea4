import re

import numpy as np
import pytest
import torch
import torchvision
from conftest import compose_run
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from src.cli import CONF
from src.models.complexity import multiply_adds, parameters
from src.models.resnet import BasicBlock, Bottleneck, ZeroPadShortcut, plain, plain_imagenet, resnet

# Parameters and multiply-adds of each config, counted from the shapes of the layers of the paper.
CIFAR_COUNTS = {
    (20, "A"): (269722, 40551040),
    (32, "A"): (464154, 68862592),
    (44, "A"): (658586, 97174144),
    (56, "A"): (853018, 125485696),
    (110, "A"): (1727962, 252887680),
    (1202, "A"): (19421274, 2829238912),
    (20, "B"): (272474, 40813184),
    (32, "B"): (466906, 69124736),
    (44, "B"): (661338, 97436288),
    (56, "B"): (855770, 125747840),
    (110, "B"): (1730714, 253149824),
    (1202, "B"): (19424026, 2829501056),
    (20, "C"): (283962, 42648192),
    (32, "C"): (489594, 72532608),
    (44, "C"): (695226, 102417024),
    (56, "C"): (900858, 132301440),
    (110, "C"): (1826202, 266781312),
    (1202, "C"): (20538714, 2986263168),
}
IMAGENET_COUNTS = {  # depth, shortcut: parameters, multiply-adds of v1, of v1.5
    (18, "A"): (11515688, 1794805760, 1794805760),
    (18, "B"): (11689512, 1814073344, 1814073344),
    (18, "C"): (12043816, 1878298624, 1878298624),
    (34, "A"): (21623848, 3644493824, 3644493824),
    (34, "B"): (21797672, 3663761408, 3663761408),
    (34, "C"): (22716840, 3830747136, 3830747136),
    (50, "A"): (22780456, 3498311680, 3729522688),
    (50, "B"): (25557032, 3857973248, 4089184256),
    (50, "C"): (40128552, 6324224000, 6555435008),
    (101, "A"): (41772584, 7210532864, 7441743872),
    (101, "B"): (44549160, 7570194432, 7801405440),
    (101, "C"): (76981288, 13530300416, 13761511424),
    (152, "A"): (57416232, 10922754048, 11153965056),
    (152, "B"): (60192808, 11282415616, 11513626624),
    (152, "C"): (107335720, 20736376832, 20967587840),
}
DEFAULT_SHORTCUT = {18: "A", 34: "A", 50: "B", 101: "B", 152: "B"}
# The other nets have tests of their own.
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if re.match("plain|res|wide", path.stem))
assert len(NAMES) == 26


def build(*overrides, device="meta"):
    config = compose_run(*overrides)
    with torch.device(device):
        return instantiate(config.model, _convert_="all")


def counts(net, size):
    return parameters(net), multiply_adds(net, (3, size, size))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_the_papers_counts(name):
    net = build(f"model={name}")
    family, depth, shortcut = re.match(r"(\D+)(\d*)([bc]?)", name).groups()
    if family in ("resnext", "wide_resnet"):
        # From torchvision's own table: parameters, and multiply-adds to three digits.
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
        params, macs = counts(net, 224)
        assert (params, round(macs / 1e9, 2)) == (weights["num_params"], pytest.approx(weights["_ops"], abs=0.01))
    elif depth and int(depth) in DEFAULT_SHORTCUT:
        params, macs, _ = IMAGENET_COUNTS[int(depth), shortcut.upper() or DEFAULT_SHORTCUT[int(depth)]]
        assert counts(net, 224) == (params, macs)
    else:
        assert counts(net, 32) == CIFAR_COUNTS[int(depth or 20), "A"]
    assert net.depth == int(depth or 20)


@pytest.mark.parametrize(("depth", "shortcut"), CIFAR_COUNTS)
def test_shortcuts_of_the_cifar_nets(depth, shortcut):
    net = build("model=resnet", f"n={(depth - 2) // 6}", f"model.shortcut={shortcut}")
    assert counts(net, 32) == CIFAR_COUNTS[depth, shortcut]
    assert net.depth == depth


@pytest.mark.parametrize(("depth", "shortcut"), IMAGENET_COUNTS)
@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_shortcuts_and_strides_of_the_imagenet_nets(depth, shortcut, stride_in_1x1):
    net = build(f"model=resnet{depth}", f"model.shortcut={shortcut}", f"model.stride_in_1x1={stride_in_1x1}")
    params, v1, v15 = IMAGENET_COUNTS[depth, shortcut]
    assert counts(net, 224) == (params, v1 if stride_in_1x1 else v15)


def randomized(net):
    """Batch-norm statistics and weights away from 0 and 1, where a mistake would not show."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    return net.eval()


@pytest.mark.parametrize("size", [(224, 224), (225, 226), (227, 229), (256, 341), (480, 639), (97, 7)])
def test_caffes_pooling_has_no_padding_and_rounds_up(size):
    net = build("model=resnet18", "model.caffe_pool=true", device="cpu")
    assert type(build("model=resnet18").maxpool) is nn.MaxPool2d and build("model=resnet18").maxpool.padding == 1
    with torch.no_grad():
        before = net.conv1(torch.randn(1, 3, *size))[:, :2]
    after = net.maxpool(before).numpy()
    # As Caffe counts: the convolution rounds down, the pooling up.
    maps = [(side + 2 * 3 - 7) // 2 + 1 for side in size]
    rows, columns = (-(-(side - 3) // 2) + 1 for side in maps)
    assert before.shape[2:] == (*maps,) and after.shape[2:] == (rows, columns)
    for y in range(rows):
        for x in range(columns):
            window = before[:, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]  # smaller at the edge
            assert (after[:, :, y, x] == window.amax((2, 3)).numpy()).all()


@pytest.mark.parametrize("dilate", [(False, False, True), (False, True, True), (True, True, True)])
def test_dilation_in_place_of_stride_is_torchvisions(dilate):
    theirs = randomized(torchvision.models.resnet50(replace_stride_with_dilation=dilate))
    text = ",".join(str(x).lower() for x in (False, *dilate))
    ours = build("model=resnet50", "model.stride_in_1x1=false", f"model.dilate=[{text}]", device="cpu").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_initialised_branches_make_every_block_an_identity(name):
    net = build(f"model={name}", "model.shortcut=B", "model.zero_init_residual=true", device="cpu")
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        assert last.weight.abs().sum() == 0
    x = torch.rand(2, blocks[1].conv1.in_channels, 8, 8)
    assert torch.equal(blocks[1].eval()(x), x)
    assert sum(bn.weight.sum() == 0 for bn in net.modules() if isinstance(bn, nn.BatchNorm2d)) == len(blocks)


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 4 * 6 * 6).view(2, 4, 6, 6).float()
    expected = np.zeros((2, 10, 3, 3), np.float32)
    expected[:, 3:7] = x.numpy()[:, :, 0::2, 0::2]
    assert (ZeroPadShortcut(6, 2)(x).numpy() == expected).all()


def test_a_plain_net_is_a_stack_of_convolution_norm_and_relu():
    torch.manual_seed(0)
    net = randomized(plain(2, 10, "fan_in"))
    pairs = [(net.conv1, net.bn1)]
    for stage in (net.layer1, net.layer2, net.layer3):
        pairs += [pair for block in stage for pair in ((block.conv1, block.bn1), (block.conv2, block.bn2))]
    x = y = torch.randn(4, 3, 32, 32)
    sizes = []
    for convolution, norm in pairs:
        y = F.relu(norm(convolution(y)))
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(16, 32, 32)] * 5 + [(32, 16, 16)] * 4 + [(64, 8, 8)] * 4
    y = F.linear(F.avg_pool2d(y, 8).flatten(1), net.fc.weight, net.fc.bias)
    torch.testing.assert_close(net(x), y)


def test_a_residual_block_adds_its_input_before_the_last_relu():
    torch.manual_seed(0)
    block = BasicBlock(16, 32, 2, 1, "A").eval()
    x = torch.randn(2, 16, 8, 8)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    shortcut = torch.zeros(2, 32, 4, 4)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(branch + shortcut))


@pytest.mark.parametrize(("init", "fan"), [("fan_in", 32 * 9), ("fan_out", 64 * 9)])
def test_he_initialisation(init, fan):
    torch.manual_seed(0)
    weight = resnet(9, "A", 10, init).layer3[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("name", ["resnet20", "plain56", "resnet1202"])
def test_the_gradient_reaches_the_first_layer(name):
    net = build(f"model={name}", device="cpu")
    before = net.conv1.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    F.cross_entropy(net(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert (net.conv1.weight.detach() - before).abs().max() > 0


@pytest.mark.parametrize("make", [lambda: resnet(2, "B", 10, "fan_in"), lambda: plain(2, 10, "fan_in")])
def test_recomputing_activations_changes_nothing_but_the_memory(make):
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    results = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(0)
        net = make()
        net.activation_checkpointing = activation_checkpointing
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = F.cross_entropy(net(images), labels)
        memory = sum(kept)
        loss.backward()
        results.append((loss, [p.grad for p in net.parameters()], net.state_dict(), memory))
    (loss, grads, state, memory), (loss2, grads2, state2, memory2) = results
    assert torch.equal(loss, loss2)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads2, strict=True))
    assert all(torch.equal(state[key], state2[key]) for key in state)
    assert memory2 < memory / 3


def test_mistakes_name_their_remedy():
    with pytest.raises(ValueError, match=r"n=2.5 .*n=2 \(14 layers\) and n=3 \(20 layers\)"):
        plain(2.5, 10, "fan_in")
    with pytest.raises(ValueError, match=r"n=0 .*n=1 \(8 layers\)"):
        resnet(0, "A", 10, "fan_in")
    with pytest.raises(ValueError, match="b is not one of A, B and C; did you mean B"):
        resnet(3, "b", 10, "fan_in")
    with pytest.raises(ValueError, match="no plain net of 50 layers"):
        plain_imagenet(50, 1000, "fan_in")
    with pytest.raises(InstantiationException, match="no net of 19 layers"):
        build("model=resnet18", "model.depth=19")
    with pytest.raises(InstantiationException, match="need bottleneck blocks"):
        build("model=resnet18", "model.groups=2")
