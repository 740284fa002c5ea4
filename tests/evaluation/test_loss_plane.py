"""The loss in a plane of random directions around a net."""

import copy
import math

import numpy as np
import pytest
import torch
from random_run import random_run
from torch import nn
from torch.nn import functional as F

from src.evaluation.evaluator import load_nets, run_config
from src.evaluation.landscape_points import plane_points
from src.evaluation.loss_plane import LossPlane, PlaneConfig, load_plane, measure, random_direction
from src.models.resnet import resnet

SETTINGS = {"split": "train", "images": 100, "seed": 0}


@pytest.fixture
def finished(find):
    """Return the directory of a run with random weights."""

    def make(*overrides):
        run_dir = find("n=1", *overrides)
        random_run(run_dir)
        return run_dir

    return make


def config(run_dir, **settings):
    return PlaneConfig(run_dir.path, **{**SETTINGS, **settings}, root=None, device="cpu")


def test_each_filter_of_a_direction_has_the_norm_of_the_filter_of_the_net():
    net = resnet(1, "B", 10, "he_fan_in")
    generator = torch.Generator().manual_seed(0)
    for name, weight in net.named_parameters():
        direction = random_direction(weight.detach(), generator).numpy()
        assert direction.shape == weight.shape
        if name.endswith("bias") or "bn" in name or weight.dim() == 1:
            assert not direction.any()
            continue
        for own, other in zip(weight.detach().numpy(), direction, strict=True):
            assert math.sqrt((other**2).sum()) == pytest.approx(math.sqrt((own**2).sum()), rel=1e-5)
            assert abs(np.vdot(own, other)) < 0.9 * (own**2).sum()  # not the filter itself


def test_the_directions_are_random_differ_and_depend_on_the_seed_alone():
    net = nn.Linear(50, 20)

    def directions(seed):
        plane = LossPlane(net, torch.zeros(1, 50), torch.zeros(1, dtype=torch.int64), seed)
        return [torch.cat([d.flatten() for d in direction]) for direction in plane.directions]

    (first, second), again, others = directions(0), directions(0), directions(1)
    assert (first == again[0]).all()
    assert (second == again[1]).all()
    for other in (second, *others):
        assert abs(F.cosine_similarity(first, other, dim=0)) < 0.2


def test_the_plane_of_a_linear_net_is_that_of_a_loop_in_numpy(monkeypatch):
    monkeypatch.setattr("src.evaluation.loss_plane.TEST_BATCH", 3)  # several batches, one smaller
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(10, 4)), rng.integers(0, 3, 10)
    net = nn.Linear(4, 3).double()
    plane = LossPlane(net, torch.from_numpy(images), torch.from_numpy(labels), seed=5)
    (first, zero), (second, _) = [[d.numpy() for d in part] for part in plane.directions]
    assert not zero.any()
    weight, bias = (p.detach().numpy().copy() for p in net.parameters())
    for alpha, beta in [(0, 0), (1, 0), (-0.5, 0.25), (0.3, -1)]:
        moved = weight + alpha * first + beta * second
        losses, errors = [], 0
        for image, label in zip(images, labels, strict=True):
            scores = [float(image @ row + b) for row, b in zip(moved, bias, strict=True)]
            losses.append(math.log(sum(math.exp(score) for score in scores)) - scores[label])
            errors += scores.index(max(scores)) != label
        loss, error = plane.measure((alpha, beta))
        assert loss == pytest.approx(sum(losses) / 10)
        assert error == pytest.approx(100 * errors / 10)


def test_weights_and_statistics_are_afterwards_what_they_were():
    net = resnet(1, "A", 10, "he_fan_in")
    before = copy.deepcopy(net.state_dict())
    plane = LossPlane(net, torch.rand(4, 3, 8, 8), torch.arange(4), seed=0)
    plane.measure((0.5, -0.5))
    assert all((before[name] == value).all() for name, value in net.state_dict().items())
    plane.images = torch.rand(4, 5, 8, 8)  # too many channels
    with pytest.raises(RuntimeError):
        plane.measure((0.5, -0.5))
    assert all((before[name] == value).all() for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=resnet"],
        ["model=plain", "model.norm=none"],
        ["model=plain", "model.norm=group"],
        ["model=highway"],
        ["model=preactivation"],
    ],
    ids=" ".join,
)
def test_the_center_is_the_loss_of_the_run_itself(finished, overrides):
    run_dir = finished(*overrides)
    (net,), data = load_nets([run_config(run_dir)])
    images, labels = data.splits["test"]
    with torch.no_grad():
        scores = net.eval()(images)
    [measured] = measure([(config(run_dir, split="test", images=0), (0.0, 0.0))], 1)
    assert measured.loss == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    assert measured.error == pytest.approx(100 * (scores.argmax(1) != labels).double().mean())


def test_the_images_are_chosen_by_the_seed_and_not_augmented(finished):
    run_dir = finished("data.val_images=20")
    plane = load_plane(config(run_dir))
    _, data = load_nets([run_config(run_dir)])
    known = {image.numpy().tobytes() for image in data.splits["train"][0]}
    chosen = [image.numpy().tobytes() for image in plane.images]
    assert len(set(chosen) & known) == len(set(chosen)) > 90
    other = load_plane(config(run_dir, seed=1))
    assert not torch.equal(plane.images, other.images)
    assert len(load_plane(config(run_dir, split="val", images=0)).images) == 20


def test_a_split_without_images_is_a_message(finished):
    with pytest.raises(ValueError, match="has held out no images: set split=train or test"):
        load_plane(config(finished(), split="val"))


def test_images_on_the_disk_are_a_message(finished, monkeypatch):
    monkeypatch.setattr("src.evaluation.loss_plane.ImagesInMemory", str)
    with pytest.raises(ValueError, match="data=digits is read from the disk; a landscape needs"):
        load_plane(config(finished()))


@pytest.mark.slow  # two processes that import torch
def test_two_processes_measure_the_same_numbers_as_one(finished):
    residual, plain = finished(), finished("model=plain")
    items = [(config(run), point) for run in (residual, plain) for point in plane_points(3, 1.0)]
    alone = list(measure(items, 1))
    assert len({measured.loss for measured in alone}) == 18
    assert list(measure(items, 2)) == alone
    # An error in a process is raised here.
    with pytest.raises(ValueError, match="has held out no images"):
        list(measure([(config(plain, split="val"), (0.0, 0.0))], 2))
