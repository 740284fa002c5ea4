import pytest
import torch
from hydra.errors import InstantiationException
from net_helpers import build_net
from torch import nn

from src.models.highway import highway
from src.models.initialization import INITS, initialize
from src.models.resnet import plain, resnet

# Standard deviation of the weights of a 3x3 convolution from 32 to 64 channels.
STDS = {
    "lecun": (1 / (9 * 32)) ** 0.5,
    "xavier": (2 / (9 * 32 + 9 * 64)) ** 0.5,
    "he_fan_in": (2 / (9 * 32)) ** 0.5,
    "he_fan_out": (2 / (9 * 64)) ** 0.5,
    "orthogonal": (2 / (9 * 32)) ** 0.5,
    "gaussian_0.01": 0.01,
    "gaussian_0.1": 0.1,
    "pytorch": (1 / (3 * 9 * 32)) ** 0.5,
}


def test_each_initialization_is_tested():
    assert {*STDS} == {*INITS, "pytorch"}


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("init", STDS)
def test_the_weights_of_convolutions_have_the_standard_deviation_of_their_initialization(
    init, norm
):
    torch.manual_seed(0)
    layer = resnet(1, "B", 10, init, norm).layer3[0].conv1
    assert layer.weight.std().item() == pytest.approx(STDS[init], rel=0.02)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.002)
    if norm == "none" and init != "pytorch":
        assert layer.bias.eq(0).all()
    if norm == "none" and init == "pytorch":  # uniform, up to one over the root of the inputs
        assert layer.bias.abs().max().item() == pytest.approx((1 / (9 * 32)) ** 0.5, rel=0.1)


def test_pytorchs_initialization_is_that_of_a_new_layer():
    torch.manual_seed(0)
    new = nn.Conv2d(3, 4, 3)
    layer = nn.Conv2d(3, 4, 3)
    torch.manual_seed(0)
    initialize([layer], "pytorch")
    assert torch.equal(layer.weight, new.weight)
    assert torch.equal(layer.bias, new.bias)


def test_the_filters_of_an_orthogonal_layer_are_orthogonal_with_the_gain_of_a_relu():
    layer = nn.Conv2d(32, 64, 3)
    initialize([layer], "orthogonal")
    filters = layer.weight.flatten(1)
    torch.testing.assert_close(filters @ filters.T, 2 * torch.eye(64), atol=1e-5, rtol=0)


def test_only_the_convolutions_depend_on_the_initialization():
    torch.manual_seed(0)
    one = plain(1, 10, "he_fan_in")
    torch.manual_seed(0)
    other = plain(1, 10, "xavier")
    assert torch.equal(one.fc.weight, other.fc.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize("init", ["pytorch", "lecun"])
def test_the_gates_of_a_highway_net_start_closed_whatever_the_initialization(init):
    block = highway(1, "A", -6.0, 10, init, "none").layer2[0]
    assert block.downsample["gate"].bias.eq(-6).all()


@pytest.mark.parametrize("model", ["plain", "resnet", "highway", "preactivation", "resnet18"])
def test_an_unknown_initialization_or_norm_is_a_message_with_those_there_are(model):
    with pytest.raises(InstantiationException, match=r"init=he is not one of pytorch, lecun, "):
        build_net(f"model={model}", "model.init=he")
    with pytest.raises(InstantiationException, match="norm=bn is not one of batch, none, group"):
        build_net(f"model={model}", "model.norm=bn")
