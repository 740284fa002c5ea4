import math
from functools import partial

import pytest
import torch
from torch import nn

from src.models.blocks import BasicBlock, Bottleneck
from src.models.complexity import activation_bytes, receptive_field
from src.models.highway import highway
from src.models.preact_resnet import preact_resnet
from src.models.residual_net import ResidualNet
from src.models.resnet import plain, plain_imagenet, resnet, resnet_imagenet
from src.models.vgg import VGG, vgg


def test_activation_bytes_by_hand():
    """A plain net keeps the image, each layer before batch norm and after ReLU, the averages."""
    maps = 3 * 16 * 32 * 32 + 2 * 32 * 16 * 16 + 2 * 64 * 8 * 8
    floats = 3 * 32 * 32 + 2 * maps + 64
    image = (3, 32, 32)
    assert activation_bytes(plain(1, 10, "he_fan_in"), image) == 4 * floats
    # Shortcut A keeps nothing more; the two projections of B have a map before their batch norm.
    assert activation_bytes(resnet(1, "A", 10, "he_fan_in"), image) == 4 * floats
    floats += 32 * 16 * 16 + 64 * 8 * 8
    assert activation_bytes(resnet(1, "B", 10, "he_fan_in"), image) == 4 * floats


def test_activation_bytes_of_a_vgg_net_by_hand():
    """Each stage keeps its map, the pooled map and the index of each maximum (8 bytes)."""
    net = VGG([[3], [3]], (4, 6), 8, False, 0.0, 5, "xavier")
    floats = 3 * 28 * 28 + 4 * 28 * 28 + 4 * 14 * 14 + 6 * 14 * 14 + 6 * 7 * 7 + 8 + 8
    kept = activation_bytes(net, (3, 28, 28))
    assert kept == 4 * floats + 8 * (4 * 14 * 14 + 6 * 7 * 7)


def test_activation_bytes_are_the_memory_of_further_images_on_a_cpu():
    net = resnet_imagenet(18, "B", True, 1, 64, [False] * 4, False, 10, "he_fan_in").train()
    sizes = []
    for images in (2, 5):
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(torch.zeros(images, 3, 64, 64))
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in kept.values()))
    assert sizes[1] - sizes[0] == 3 * activation_bytes(net, (3, 64, 64))


RESNET = partial(
    resnet_imagenet, dilate=[False] * 4, zero_init_residual=False, num_classes=10, init="he_fan_in"
)
# The first four are in Araujo et al. 2019, Computing Receptive Fields of Convolutional Neural
# Networks.
KNOWN_FIELDS = [
    (212, lambda: vgg(16, False, False, 0.5, 10, "xavier")),
    (483, lambda: RESNET(50, "B", True, 1, 64)),
    (1027, lambda: RESNET(101, "B", True, 1, 64)),
    (1507, lambda: RESNET(152, "B", True, 1, 64)),
    (
        427,
        lambda: RESNET(50, "B", False, 1, 64),
    ),  # in three blocks, the 3x3 layer has half the spacing
    (899, lambda: plain_imagenet(34, 10, "he_fan_in")),
    (5, lambda: nn.Conv2d(3, 3, 3, dilation=2)),
]


@pytest.mark.parametrize(("pixels", "make"), KNOWN_FIELDS)
def test_receptive_field_equals_published_values(pixels, make):
    with torch.device("meta"):
        assert receptive_field(make()) == pixels


def small_imagenet_net(make_block, dilate=()):
    return ResidualNet(
        make_block, (2, 2, 2), (1, 2, 1), 3, "he_fan_in", imagenet_stem=True, dilate=dilate
    )


V1, V15 = (
    partial(Bottleneck, shortcut="C", stride_in_1x1=stride_in_1x1, groups=1, width_per_group=64)
    for stride_in_1x1 in (True, False)
)
SMALL_NETS = {
    "plain": lambda: plain(1, 3, "he_fan_in"),
    "resnet": lambda: resnet(2, "A", 3, "he_fan_in"),
    "highway": lambda: highway(1, "B", -1.0, 3, "he_fan_in"),
    "preactivation": lambda: preact_resnet(1, "B", 3, "he_fan_in"),
    "stem": lambda: small_imagenet_net(partial(BasicBlock, shortcut="B")),
    "v1": lambda: small_imagenet_net(V1),
    "v1.5": lambda: small_imagenet_net(V15),
    "dilated": lambda: small_imagenet_net(V15, [False, True, True]),
    "vgg": lambda: VGG([[3, 3], [3, 1]], (2, 3), 4, False, 0.0, 3, "xavier"),
}


@pytest.mark.parametrize("name", SMALL_NETS)
def test_receptive_field_is_where_the_gradient_is_not_zero(name):
    """With positive weights and average pooling, all pixels of the field have a gradient."""
    net = SMALL_NETS[name]().double().eval()
    field = receptive_field(net)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    maps = []
    if isinstance(net, VGG):
        for i in net.stage_ends[1:]:
            net.features[i - 1] = nn.AvgPool2d(2, 2)
        net.features.register_forward_hook(lambda _, __, x: maps.append(x))
        run = net.features
    else:
        if isinstance(net.maxpool, nn.MaxPool2d):
            net.maxpool = nn.AvgPool2d(3, 2, 1)
        net.final.register_forward_hook(lambda _, __, x: maps.append(x))
        run = net
    size = 64 * math.ceil(2 * field / 64)
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    run(image)
    rows, columns = maps[0].shape[2:]
    (gradient,) = torch.autograd.grad(maps[0][0, :, rows // 2, columns // 2].sum(), image)
    down, right = gradient[0].abs().sum(0).nonzero().T
    for pixels in (down, right):
        assert pixels.max() - pixels.min() + 1 == field
        assert pixels.min() > 0  # the edge of the image would hide a larger field
        assert pixels.max() < size - 1
