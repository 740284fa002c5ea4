import pytest
import torch
from hydra.errors import InstantiationException
from net_helpers import build_net, complexity, score_by_convolutions
from torch import nn
from torch.nn import functional as F

from src.models.resnet import resnet_imagenet
from src.models.vgg import VGG

# Layers, parameters and multiply-adds.
COUNTS = {
    "vgg11": (11, 132863336, 7609090048),
    "vgg13": (13, 133047848, 11308466176),
    "vgg16": (16, 138357544, 15470264320),
    "vgg16c": (16, 133638952, 11770888192),
    "vgg19": (19, 143667240, 19632062464),
}
# Channels of all convolutions, for each of which batch norm has two parameters.
CHANNELS = {"vgg11": 2752, "vgg13": 2944, "vgg16": 4224, "vgg16c": 4224, "vgg19": 5504}


def small_vgg(batch_norm=False, dropout=0.5, init="xavier"):
    """Two stages: a 28x28 image has a last map of 7x7, and windows are 4 pixels apart."""
    torch.manual_seed(0)
    return VGG([[3], [3, 1]], (4, 6), 8, batch_norm, dropout, 5, init)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize("name", COUNTS)
def test_every_config_has_the_counts_of_its_paper(name, suffix):
    net = build_net(f"model={name}{suffix}")
    depth, parameters, multiply_adds = COUNTS[name]
    parameters += 2 * CHANNELS[name] if suffix else 0
    assert (net.depth, *complexity(net, 224)) == (depth, parameters, multiply_adds)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == bool(suffix)


def test_net_c_ends_its_last_three_stages_in_1x1_convolutions():
    sizes = [
        m.kernel_size[0] for m in build_net("model=vgg16c").features if isinstance(m, nn.Conv2d)
    ]
    assert sizes == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize("size", [(28, 28), (32, 28), (40, 55), (31, 31)])
def test_dense_testing_equals_fc_layers_as_convolutions(size):
    net = small_vgg(batch_norm=True).eval()
    x = images(2, 3, *size)
    torch.testing.assert_close(net(x), score_by_convolutions(net, x))


@pytest.mark.slow
def test_vgg11_tests_densely():
    net = build_net("model=vgg11", "model.init=he_fan_in", device="cpu").eval()
    with torch.no_grad():
        for size in ((224, 224), (256, 320)):
            x = images(1, 3, *size)
            expected = score_by_convolutions(net, x)
            torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_dense_testing_equals_a_sliding_window():
    """Exactly if no layer sees beyond a window: only the center of the 3x3 kernels is not zero."""
    net = small_vgg().eval()
    for layer in net.features:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.weight.data *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    x = images(2, 3, 40, 32)
    crops = [x[:, :, top : top + 28, left : left + 28] for top in (0, 4, 8, 12) for left in (0, 4)]
    torch.testing.assert_close(net(x), torch.stack([net(crop) for crop in crops]).mean(0))
    assert not torch.allclose(net(x), net(crops[0]), atol=1e-3)


def test_residual_net_tests_densely_as_it_is():
    """The fc layer is linear, so it may come before or after the average over positions."""
    torch.manual_seed(0)
    net = resnet_imagenet(18, "B", True, 1, 64, [False] * 4, False, 10, "he_fan_in").eval()
    last = []
    net.final.register_forward_hook(lambda _, __, x: last.append(x))
    with torch.no_grad():
        scores = net(images(2, 3, 64, 96))
        dense = F.conv2d(last[0], net.fc.weight[:, :, None, None], net.fc.bias)
    assert dense.shape == (2, 10, 2, 3)
    torch.testing.assert_close(scores, dense.mean((2, 3)))


def test_dropout_is_active_only_in_training():
    net, x = small_vgg(dropout=0.5), images(2, 3, 28, 28)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# Standard deviation of a 3x3 convolution (64 to 128 channels) and of an fc layer (512 to 1000).
INIT_STDS = {
    "xavier": ((2 / (9 * 64 + 9 * 128)) ** 0.5, (2 / 1512) ** 0.5),
    "gaussian_0.1": (0.1, 0.1),
    "he_fan_in": ((2 / (9 * 64)) ** 0.5, (2 / 512) ** 0.5),
    "he_fan_out": ((2 / (9 * 128)) ** 0.5, (2 / 1000) ** 0.5),
}


@pytest.mark.parametrize("init", INIT_STDS)
def test_initialization_has_the_standard_deviation_of_its_name(init):
    torch.manual_seed(0)
    net = VGG([[3], [3]], (64, 128), 512, False, 0.5, 1000, init)
    for layer, std in zip((net.features[3], net.classifier[6]), INIT_STDS[init], strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.01)
    assert all(p.eq(0).all() for name, p in net.named_parameters() if name.endswith("bias"))
    if init == "xavier":  # uniform
        assert net.classifier[6].weight.abs().max() <= (6 / 1512) ** 0.5


def test_errors_name_what_is_valid():
    with pytest.raises(
        InstantiationException, match=r"no net of 17 layers in .*\[11, 13, 16, 19\]"
    ):
        build_net("model=vgg11", "model.depth=17")
    with pytest.raises(
        InstantiationException, match=r"no net of 19 layers with 1x1 .* with 1x1 convolutions 16"
    ):
        build_net("model=vgg16c", "model.depth=19")
    with pytest.raises(
        InstantiationException, match="init=he is not one of pytorch, lecun, xavier, he_fan_in"
    ):
        build_net("model=vgg11", "model.init=he")
    with pytest.raises(
        ValueError, match="images of 32x32 are too small: a VGG net takes 224 pixels a side"
    ):
        build_net("model=vgg11")(torch.empty(1, 3, 32, 32, device="meta"))
    with pytest.raises(ValueError, match="27x40 are too small: a VGG net takes 28"):
        small_vgg()(images(1, 3, 27, 40))
