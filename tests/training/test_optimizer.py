from torch import nn

from src.training.optimizer import optimizer_factory, weight_decay_groups

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "weight_decay": 0.5}


def make_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_weight_decay_is_on_all_parameters_by_default():
    recipe = {"optimizer": SGD, "decay_norm_and_bias": True}
    (group,) = optimizer_factory(recipe)(make_net().parameters(), lr=0.1).param_groups
    assert (group["weight_decay"], len(group["params"])) == (0.5, 6)


def test_weight_decay_can_leave_out_batch_norm_and_biases():
    net = make_net()
    recipe = {"optimizer": SGD, "decay_norm_and_bias": False}
    decayed, others = optimizer_factory(recipe)(net.parameters(), lr=0.1).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert decayed["lr"] == others["lr"] == 0.1
    assert [*map(id, decayed["params"])] == [id(net[0].weight), id(net[3].weight)]
    assert len(others["params"]) == 4


def test_every_parameter_is_in_one_group():
    parameters = [*make_net().parameters()]
    groups = weight_decay_groups(iter(parameters))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, parameters))
