import copy

import pytest
import torch
from hydra.errors import InstantiationException
from net_helpers import build_net, check_gradients
from torch import nn
from torch.nn import functional as F

from src.models.activation_checkpointing import checkpointed_forward
from src.models.complexity import count_parameters
from src.models.normalization import GhostBatchNorm2d, limit_batch_norm_images, make_norm
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


def random_batch_norm():
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_batch_norm_over_fewer_images_is_that_of_each_part_of_the_batch():
    torch.manual_seed(0)
    net = nn.Sequential(random_batch_norm())
    [usual] = copy.deepcopy(net)
    limit_batch_norm_images(net, 4, batch_size=12)
    x = torch.randn(12, 3, 5, 5) * torch.arange(1, 13).view(-1, 1, 1, 1)
    assert torch.equal(net(x), torch.cat([usual(part) for part in x.split(4)]))


def test_its_running_statistics_are_those_of_the_first_part_and_serve_evaluation():
    torch.manual_seed(0)
    net = nn.Sequential(random_batch_norm())
    [usual] = copy.deepcopy(net)
    limit_batch_norm_images(net, 4, batch_size=8)
    for _ in range(3):
        x = torch.randn(8, 3, 5, 5) + torch.arange(8).view(-1, 1, 1, 1)
        net(x)
        usual(x[:4])
    state = usual.state_dict()
    assert [*state] == [*net[0].state_dict()]
    assert all(torch.equal(value, state[key]) for key, value in net[0].state_dict().items())
    assert torch.equal(net.eval()(x), usual.eval()(x))


def test_its_gradients_are_the_mean_of_those_of_processes_with_a_part_each():
    torch.manual_seed(0)
    net = resnet(1, "B", 10, "he_fan_in").double()
    parts, together = copy.deepcopy(net), copy.deepcopy(net)
    limit_batch_norm_images(together, 4, batch_size=8)
    together.double()
    images, labels = torch.randn(8, 3, 16, 16).double(), torch.arange(8)
    F.cross_entropy(together(images), labels).backward()
    for part in (slice(4), slice(4, 8)):
        (F.cross_entropy(parts(images[part]), labels[part]) / 2).backward()
    for parameter, expected in zip(together.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_activation_checkpointing_changes_nothing_of_batch_norm_over_fewer_images():
    torch.manual_seed(0)
    x, results = torch.randn(8, 3, 5, 5, requires_grad=True), []
    for run in (lambda net, x: net(x), checkpointed_forward):
        net = nn.Sequential(nn.BatchNorm2d(3))
        limit_batch_norm_images(net, 4, batch_size=8)
        y = run(net, x)
        results.append([y, *torch.autograd.grad((y**3).sum(), x), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_batch_norm_over_fewer_images_keeps_the_initial_weights():
    net = build_net("model=resnet18", "model.zero_init_residual=true", device="cpu")
    before = copy.deepcopy(net.state_dict())
    limit_batch_norm_images(net, 8, batch_size=16)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(norm, GhostBatchNorm2d) for norm in norms)
    assert [*net.state_dict()] == [*before]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("images", [3, 0, -4, 16, 2.0, True, "4"])
def test_batch_norm_over_parts_that_are_not_equal_is_refused(images):
    with pytest.raises(ValueError, match=f"^recipe.batch_norm_images={images} must be .*, 8$"):
        limit_batch_norm_images(resnet(1, "A", 10, "he_fan_in"), images, batch_size=8)


def test_batch_norm_over_fewer_images_needs_a_net_with_batch_norm():
    with pytest.raises(ValueError, match="=4 needs a net with batch norm"):
        limit_batch_norm_images(resnet(1, "A", 10, "he_fan_in", "group"), 4, batch_size=8)
