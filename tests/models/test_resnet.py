import re

import numpy as np
import pytest
import torch
import torchvision
from hydra.errors import InstantiationException
from net_helpers import build_net, check_gradients, complexity
from torch import nn

from src.config import CONF
from src.models.blocks import BasicBlock, Bottleneck
from src.models.resnet import plain, plain_imagenet, resnet

# Parameters and multiply-adds of each net, counted from the shapes of the layers in the paper.
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
# By depth and shortcut: parameters, multiply-adds with the stride in the 1x1 and in the 3x3 layer.
IMAGENET_COUNTS = {
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
# The other nets of conf/model are in the other test files.
NAMES = sorted(
    path.stem for path in (CONF / "model").glob("*.yaml") if re.match("plain|res|wide", path.stem)
)


def test_conf_has_all_nets_of_the_paper():
    assert len(NAMES) == 26


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_the_counts_of_its_paper(name):
    net = build_net(f"model={name}")
    family, digits, letter = re.match(r"(\D+)(\d*)([bc]?)", name).groups()
    depth = int(digits or 20)
    assert net.depth == depth
    if family in ("resnext", "wide_resnet"):
        # From torchvision's own table: parameters, and multiply-adds to three digits.
        meta = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
        parameters, multiply_adds = complexity(net, 224)
        assert parameters == meta["num_params"]
        assert round(multiply_adds / 1e9, 2) == pytest.approx(meta["_ops"], abs=0.01)
    elif depth in DEFAULT_SHORTCUT:
        counts = IMAGENET_COUNTS[depth, letter.upper() or DEFAULT_SHORTCUT[depth]]
        assert complexity(net, 224) == counts[:2]
    else:
        assert complexity(net, 32) == CIFAR_COUNTS[depth, "A"]


@pytest.mark.parametrize(
    ("depth", "shortcut"),
    [
        pytest.param(depth, shortcut, marks=[pytest.mark.slow] if depth == 1202 else [])
        for depth, shortcut in CIFAR_COUNTS
        if shortcut != "A"  # in the configs
    ],
)
def test_shortcuts_of_the_cifar_nets_have_exact_counts(depth, shortcut):
    net = build_net("model=resnet", f"n={(depth - 2) // 6}", f"model.shortcut={shortcut}")
    assert complexity(net, 32) == CIFAR_COUNTS[depth, shortcut]
    assert net.depth == depth


@pytest.mark.parametrize(
    ("depth", "shortcut", "stride_in_1x1"),
    [
        (depth, shortcut, stride_in_1x1)
        for depth, shortcut in IMAGENET_COUNTS
        for stride_in_1x1 in (True, False)
        if stride_in_1x1 or depth >= 50  # only bottlenecks have a choice
        if not (stride_in_1x1 and shortcut == DEFAULT_SHORTCUT[depth])  # in the configs
    ],
)
def test_shortcuts_and_strides_of_the_imagenet_nets_have_exact_counts(
    depth, shortcut, stride_in_1x1
):
    stride = f"model.stride_in_1x1={stride_in_1x1}"
    net = build_net(f"model=resnet{depth}", f"model.shortcut={shortcut}", stride)
    parameters, in_1x1, in_3x3 = IMAGENET_COUNTS[depth, shortcut]
    assert complexity(net, 224) == (parameters, in_1x1 if stride_in_1x1 else in_3x3)


@pytest.mark.parametrize(
    "size", [(224, 224), (225, 226), (227, 229), (256, 341), (480, 639), (97, 7)]
)
def test_caffe_pool_has_no_padding_and_rounds_up(size):
    net = build_net("model=resnet18", "model.caffe_pool=true")
    rows, columns = net.conv1(torch.empty(1, 3, *size, device="meta")).shape[2:]
    # In Caffe, too, convolutions round down.
    assert (rows, columns) == tuple((side + 2 * 3 - 7) // 2 + 1 for side in size)

    # A window that reaches over the edge sees -inf there, which never is the maximum.
    maps = torch.randn(1, 2, rows, columns)
    padded = np.pad(maps.numpy(), ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    out_rows, out_columns = (int(np.ceil((side - 3) / 2)) + 1 for side in (rows, columns))
    expected = windows.max((-2, -1))[:, :, :out_rows, :out_columns]
    assert np.array_equal(net.maxpool(maps).numpy(), expected)


def test_default_pool_is_torchvisions():
    pool = build_net("model=resnet18").maxpool
    assert type(pool) is nn.MaxPool2d
    assert (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (3, 2, 1, False)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_residual_makes_every_block_the_identity(name):
    overrides = ["model.shortcut=B", "model.zero_init_residual=true"]
    net = build_net(f"model={name}", *overrides, device="cpu").eval()
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(norm.weight.abs().sum() == 0 for norm in norms) == len(blocks)
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        assert last.weight.abs().sum() == 0
    x = torch.rand(2, blocks[1].conv1.in_channels, 8, 8)
    assert torch.equal(blocks[1](x), x)


@pytest.mark.parametrize(("init", "fan"), [("he_fan_in", 32 * 9), ("he_fan_out", 64 * 9)])
def test_he_initialization_has_variance_two_over_fan(init, fan):
    torch.manual_seed(0)
    weight = resnet(3, "A", 10, init).layer3[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize(
    "name", ["resnet20", "plain56", pytest.param("resnet1202", marks=pytest.mark.slow)]
)
def test_gradient_reaches_every_layer(name):
    torch.manual_seed(0)
    check_gradients(build_net(f"model={name}", device="cpu"))


def test_errors_name_what_is_valid():
    with pytest.raises(ValueError, match=r"n=2.5 .*n=2 \(14 layers\) and n=3 \(20 layers\)"):
        plain(2.5, 10, "he_fan_in")
    with pytest.raises(ValueError, match=r"n=0 .*n=1 \(8 layers\)"):
        resnet(0, "A", 10, "he_fan_in")
    with pytest.raises(ValueError, match="b is not one of A, B and C; did you mean B"):
        resnet(3, "b", 10, "he_fan_in")
    with pytest.raises(ValueError, match="no plain net of 50 layers"):
        plain_imagenet(50, 1000, "he_fan_in")
    with pytest.raises(InstantiationException, match="no net of 19 layers"):
        build_net("model=resnet18", "model.depth=19")
    with pytest.raises(InstantiationException, match="need bottleneck blocks"):
        build_net("model=resnet18", "model.groups=2")
