import pytest
import torch
from hydra.errors import InstantiationException
from net_helpers import build_net, check_gradients
from torch import nn
from torch.nn import functional as F

from src.models.complexity import count_parameters
from src.models.normalization import make_norm
from src.models.resnet import plain, resnet

NETS = ["plain", "resnet", "highway", "preactivation", "preactivation164", "plain18", "resnet50"]


@pytest.mark.parametrize("model", NETS)
def test_a_net_without_normalization_has_biases_in_all_convolutions(model):
    net, batch_norm = (build_net(f"model={model}", *norm) for norm in (["model.norm=none"], []))
    norms = [m for m in batch_norm.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert not [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    # A batch norm has a weight and a bias for each channel, and the bias is the convolution's now.
    # Where batch norm comes first, the last one and one of each projection are not the same.
    if not model.startswith("preactivation"):
        fewer = sum(norm.num_features for norm in norms)
        assert count_parameters(batch_norm) - count_parameters(net) == fewer
    assert net.depth == batch_norm.depth


@pytest.mark.parametrize("model", NETS)
def test_group_norm_takes_the_place_of_each_batch_norm(model):
    net, batch_norm = (build_net(f"model={model}", *norm) for norm in (["model.norm=group"], []))
    groups = {name: m for name, m in net.named_modules() if isinstance(m, nn.GroupNorm)}
    norms = {n: m for n, m in batch_norm.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert [*groups] == [*norms]
    for name, norm in norms.items():
        assert groups[name].num_channels == norm.num_features
    assert count_parameters(net) == count_parameters(batch_norm)
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (32, 32), (64, 32), (48, 16), (3, 1)])
def test_group_norm_has_32_groups_or_fewer_so_that_they_divide_the_channels(channels, groups):
    assert make_norm("group", channels).num_groups == groups


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("model", ["plain", "resnet", "highway", "preactivation"])
def test_gradient_reaches_every_layer_with_any_norm(model, norm):
    torch.manual_seed(0)
    check_gradients(build_net(f"model={model}", "n=1", f"model.norm={norm}", device="cpu"))


def test_a_plain_net_without_normalization_is_a_stack_of_convolutions_and_relus():
    torch.manual_seed(0)
    net = plain(1, 10, "pytorch", "none")
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    x = y = torch.randn(2, 3, 16, 16)
    for conv in convolutions:
        y = F.relu(F.conv2d(y, conv.weight, conv.bias, conv.stride, padding=1))
    torch.testing.assert_close(net(x), net.fc(y.mean((2, 3))))


def test_batch_norm_is_the_default_and_draws_the_same_weights():
    states = []
    for norm in ([], ["batch"]):
        torch.manual_seed(0)
        states.append(resnet(1, "B", 10, "he_fan_in", *norm).state_dict())
    assert [*states[0]] == [*states[1]]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_blocks_that_start_as_the_identity_need_a_normalization():
    zero = ["model=resnet18", "model.zero_init_residual=true"]
    with pytest.raises(InstantiationException, match="zero_init_residual=true needs a normal"):
        build_net(*zero, "model.norm=none")
    net = build_net(*zero, "model.norm=group", device="cpu")
    assert all(block.bn2.weight.eq(0).all() for block in net.blocks())
