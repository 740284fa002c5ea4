import pytest
import torch
from conftest import compose_run
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from src.models.complexity import activation_bytes, multiply_adds, parameters
from src.models.resnet import resnet_imagenet
from src.models.vgg import VGG

COUNTS = {  # layers, parameters, multiply-adds; batch norm adds two parameters for each channel of each convolution
    "vgg11": (11, 132863336, 7609090048),
    "vgg13": (13, 133047848, 11308466176),
    "vgg16": (16, 138357544, 15470264320),
    "vgg16c": (16, 133638952, 11770888192),
    "vgg19": (19, 143667240, 19632062464),
}
CHANNELS = {"vgg11": 2752, "vgg13": 2944, "vgg16": 4224, "vgg16c": 4224, "vgg19": 5504}


def build(*overrides, device="meta"):
    with torch.device(device):
        return instantiate(compose_run(*overrides).model, _convert_="all")


def small(batch_norm=False, dropout=0.5, init="glorot"):
    """Two stages, so an image of 28x28 has a last map of 7x7 and each further position is 4 pixels off."""
    torch.manual_seed(0)
    return VGG([[3], [3, 1]], (4, 6), 8, batch_norm, dropout, 5, init)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize("name", COUNTS)
def test_every_config_has_the_papers_counts(name, suffix):
    net = build(f"model={name}{suffix}")
    depth, params, macs = COUNTS[name]
    assert (net.depth, multiply_adds(net, (3, 224, 224))) == (depth, macs)
    assert parameters(net) == params + (2 * CHANNELS[name] if suffix else 0)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == bool(suffix)


def test_net_c_ends_its_last_three_stages_in_1x1_layers():
    sizes = [m.kernel_size[0] for m in build("model=vgg16c").features if isinstance(m, nn.Conv2d)]
    assert sizes == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


def by_convolutions(net, x):
    """Sec. 3.2: the fc layers as a 7x7 and two 1x1 convolutions over the whole image, their score map averaged."""
    first, second, third = (net.classifier[i] for i in (0, 3, 6))
    x = net.features(x)
    x = F.relu(F.conv2d(x, first.weight.view(-1, x.shape[1], 7, 7), first.bias))
    x = F.relu(F.conv2d(x, second.weight[:, :, None, None], second.bias))
    return F.conv2d(x, third.weight[:, :, None, None], third.bias).mean((2, 3))


@pytest.mark.parametrize("size", [(28, 28), (32, 28), (40, 55), (31, 31)])
def test_larger_images_are_scored_as_by_convolutions(size):
    net = small(batch_norm=True).eval()
    x = images(2, 3, *size)
    torch.testing.assert_close(net(x), by_convolutions(net, x))


def test_a_full_net_tests_densely_too():
    net = build("model=vgg11", "model.init=fan_in", device="cpu").eval()
    with torch.no_grad():
        for size in ((224, 224), (256, 320)):
            torch.testing.assert_close(
                net(images(1, 3, *size)), by_convolutions(net, images(1, 3, *size)), rtol=1e-4, atol=1e-5
            )


def test_larger_images_are_scored_as_by_a_sliding_window():
    """Exactly so where no layer looks over the edge of a window, that is, with 3x3 weights zero but in the middle."""
    net = small().eval()
    for layer in net.features:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.weight.data *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    x = images(2, 3, 40, 32)
    crops = [x[:, :, top : top + 28, left : left + 28] for top in (0, 4, 8, 12) for left in (0, 4)]
    torch.testing.assert_close(net(x), torch.stack([net(crop) for crop in crops]).mean(0))
    assert not torch.allclose(net(x), net(crops[0]), atol=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_a_residual_net_tests_densely_as_it_is(size):
    """The fc layer at each position, then averaged, is the fc layer after average pooling: it is linear."""
    torch.manual_seed(0)
    net = resnet_imagenet(18, "B", True, 1, 64, [False] * 4, False, 10, "fan_in").eval()
    last = []
    net.final.register_forward_hook(lambda _, __, x: last.append(x))
    with torch.no_grad():
        scores = net(images(2, 3, *size))
        dense = F.conv2d(last[0], net.fc.weight[:, :, None, None], net.fc.bias)
    assert dense.shape == (2, 10, size[0] // 32, size[1] // 32)
    torch.testing.assert_close(scores, dense.mean((2, 3)))


def test_dropout_works_in_training_alone():
    net, x = small(dropout=0.5), images(2, 3, 28, 28)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


INITS = {  # the deviation of a 3x3 convolution from 256 to 512 channels, of the last fc layer
    "glorot": ((2 / (9 * 256 + 9 * 512)) ** 0.5, (2 / 5096) ** 0.5),
    "normal": (0.1, 0.1),
    "fan_in": ((2 / (9 * 256)) ** 0.5, (2 / 4096) ** 0.5),
    "fan_out": ((2 / (9 * 512)) ** 0.5, (2 / 1000) ** 0.5),
}


@pytest.mark.parametrize("init", INITS)
def test_initialisation(init):
    torch.manual_seed(0)
    net = VGG([[3], [3]], (256, 512), 4096, False, 0.5, 1000, init)
    for layer, deviation in zip((net.features[3], net.classifier[6]), INITS[init], strict=True):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.01)
    assert all(p.eq(0).all() for name, p in net.named_parameters() if name.endswith("bias"))
    assert init != "glorot" or net.classifier[6].weight.abs().max() <= (6 / 5096) ** 0.5  # it is uniform


@pytest.mark.parametrize("batch_norm", [False, True])
def test_recomputing_activations_changes_nothing_but_the_memory(batch_norm):
    results = []
    for activation_checkpointing in (False, True):
        net = small(batch_norm)
        net.activation_checkpointing = activation_checkpointing
        F.cross_entropy(net(images(4, 3, 28, 28)), torch.arange(4)).backward()
        results.append([*(p.grad for p in net.parameters()), *net.buffers()])
        memory = activation_bytes(net, (3, 28, 28))
        results[-1].append(torch.tensor(memory))
    *same, memory = zip(*results, strict=True)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in same)
    assert all(grad.abs().max() > 0 for grad, _ in same[:2])
    assert memory[1] < memory[0] / 2


def test_mistakes_name_their_remedy():
    with pytest.raises(InstantiationException, match=r"no net of 17 layers in .*\[11, 13, 16, 19\]"):
        build("model=vgg11", "model.depth=17")
    with pytest.raises(InstantiationException, match=r"no net of 19 layers with 1x1 .* with 1x1 convolutions 16"):
        build("model=vgg16c", "model.depth=19")
    with pytest.raises(InstantiationException, match="init=he is not one of glorot, normal, fan_in, fan_out"):
        build("model=vgg11", "model.init=he")
    with pytest.raises(ValueError, match="images of 32x32 are too small: a VGG net takes 224 pixels a side"):
        build("model=vgg11")(torch.empty(1, 3, 32, 32, device="meta"))
    with pytest.raises(ValueError, match="27x40 are too small: a VGG net takes 28"):
        small()(images(1, 3, 27, 40))
