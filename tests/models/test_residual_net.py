"""What all nets of stages of blocks have in common: their forward pass, and dilation."""

from functools import partial

import pytest
import torch
from net_helpers import build_net, randomize_batch_norm
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as torchvision_resnet

from src.models.blocks import Bottleneck
from src.models.residual_net import ResidualNet
from src.models.resnet import IMAGENET_WIDTHS, plain


def test_plain_net_is_a_stack_of_convolution_batch_norm_and_relu():
    torch.manual_seed(0)
    net = randomize_batch_norm(plain(2, 10, "he_fan_in"), statistics=True).eval()
    pairs = [(net.conv1, net.bn1)]
    for stage in (net.layer1, net.layer2, net.layer3):
        for block in stage:
            pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    x = y = torch.randn(4, 3, 32, 32)
    sizes = []
    for conv, norm in pairs:
        y = F.relu(norm(conv(y)))
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(16, 32, 32)] * 5 + [(32, 16, 16)] * 4 + [(64, 8, 8)] * 4
    y = F.linear(F.avg_pool2d(y, 8).flatten(1), net.fc.weight, net.fc.bias)
    torch.testing.assert_close(net(x), y)


@pytest.mark.parametrize("dilate", [(False, True, True), (True, False, True)])
def test_dilation_instead_of_striding_is_torchvisions(dilate):
    torch.manual_seed(0)
    theirs = torchvision_resnet.ResNet(
        torchvision_resnet.Bottleneck, [1, 2, 2, 2], 10, replace_stride_with_dilation=dilate
    )
    theirs = randomize_batch_norm(theirs, statistics=True).eval()
    make_block = partial(
        Bottleneck, shortcut="B", stride_in_1x1=False, groups=1, width_per_group=64
    )
    ours = ResidualNet(
        make_block, IMAGENET_WIDTHS, [1, 2, 2, 2], 10, "he_fan_in", True, [False, *dilate]
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_dilation_of_more_stages_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"dilate=\[.*\] is for 4 stages, but the net has 3"):
        plain(1, 10, "he_fan_in", dilate=[False, False, False, True])


def test_dilation_is_set_by_the_config():
    net = build_net("model=resnet50", "model.dilate=[false,false,true,true]")
    layers = [net.layer2[1].conv2, net.layer3[1].conv2, net.layer4[0].conv2, net.layer4[1].conv2]
    assert [layer.dilation[0] for layer in layers] == [1, 2, 2, 4]
    assert net.layer4[0].downsample[0].stride == (1, 1)


@pytest.mark.parametrize("name", ["plain", "resnet", "highway", "preactivation"])
def test_the_last_map_of_a_dilated_cifar_net_is_as_fine_as_the_image(name):
    coarse, fine = (
        build_net(f"model={name}", "n=1", *dilate)
        for dilate in ([], ["model.dilate=[false,true,true]"])
    )
    image = torch.empty(1, 3, 32, 32, device="meta")
    sizes = [tuple(net.last_map(image).shape[2:]) for net in (coarse, fine)]
    assert sizes == [(8, 8), (32, 32)]
    assert (coarse.shared_stride, fine.shared_stride) == (2, 1)
    # Dilation has no weights, so a dilated net takes those of one that is not.
    shapes = [{name: x.shape for name, x in net.state_dict().items()} for net in (coarse, fine)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "n", "layers_per_block"),
    [
        ("plain", "n", 2),
        ("resnet", "n", 2),
        ("highway", "n", 2),
        ("preactivation", "n", 2),
        ("preactivation164", "model.n", 1),
    ],
)
def test_dilation_reaches_every_3x3_layer_of_a_block(name, n, layers_per_block):
    net = build_net(f"model={name}", f"{n}=2", "model.dilate=[false,true,true]")
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    of_blocks = [d for d in (1, 1, 1, 2, 2, 4) for _ in range(layers_per_block)]
    assert [layer.dilation for layer in layers] == [(d, d) for d in (1, *of_blocks)]
