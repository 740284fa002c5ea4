import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import compose_run
from data.images_on_disk import make_folders
from hydra import compose
from hydra.utils import instantiate
from net_helpers import score_by_convolutions
from torch import nn
from torch.nn import functional as F

from src.config import CONF
from src.data import transforms
from src.data.image_reader import decode_image
from src.data.imagenet import MEAN, STD
from src.data.transforms import resize
from src.evaluation.ensemble import NormalizedNet
from src.evaluation.protocols import center_crop, multi_scale, ten_crops
from src.export import write_safetensors
from src.models.resnet import resnet
from src.models.weights import hash_weights, load_weights, read_weights


@pytest.fixture
def net():
    torch.manual_seed(0)
    return resnet(1, "B", 10, "he_fan_in")


def has_weights(net, state):
    own = net.state_dict()
    return list(own) == list(state) and all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 92.1},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {
            "state_dict": {f"module.{key}": value for key, value in state.items()},
            "epoch": 3,
        },
        lambda state: {"state_dict": {f"net.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {f"module.{key}".replace("fc.", "linear."): v for key, v in state.items()},
    ],
)
def test_state_dicts_are_read_bare_nested_and_with_prefixes(net, tmp_path, wrap):
    torch.save(wrap(net.state_dict()), tmp_path / "weights.pt")
    torch.manual_seed(1)
    other = resnet(1, "B", 10, "he_fan_in")
    assert not has_weights(other, net.state_dict())
    load_weights(other, read_weights(tmp_path / "weights.pt", other))
    assert has_weights(other, net.state_dict())


def test_names_of_others_are_accepted_with_a_message_and_our_own_without(net, tmp_path, capsys):
    """Much used weights for CIFAR-10 call the last layer `linear` and come from DataParallel."""
    path = tmp_path / "weights.pt"
    state = {f"module.{key}".replace("fc.", "linear."): v for key, v in net.state_dict().items()}
    torch.save({"state_dict": state}, path)
    read_weights(path, net)
    expected = "accepted linear.bias as fc.bias, linear.weight as fc.weight, module.*"
    assert capsys.readouterr().out == f"{path}: {expected}\n"
    torch.save({"state_dict": {f"net.{key}": v for key, v in net.state_dict().items()}}, path)
    read_weights(path, net)
    assert capsys.readouterr().out == ""


class Wrapper(nn.Module):
    """A net whose own layers have the names of prefixes and of an alias."""

    def __init__(self):
        super().__init__()
        self.net, self.model, self.linear = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5)


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
def test_a_net_whose_layers_have_such_names_keeps_them(tmp_path, prefix):
    torch.manual_seed(0)
    net, other = Wrapper(), Wrapper()
    torch.save({f"{prefix}{key}": v for key, v in net.state_dict().items()}, tmp_path / "w.pt")
    load_weights(other, read_weights(tmp_path / "w.pt", other))
    assert has_weights(other, net.state_dict())


def randomized(name):
    """One of torchvision's nets with random weights and batch norm statistics."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    net = net.to_empty(device="cpu").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            # The branches of residual nets add up: a larger variance keeps the sum in range.
            nn.init.uniform_(module.running_var, *((0.5, 1.5) if "vgg" in name else (1, 3)))
            nn.init.normal_(module.running_mean, std=0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.1)
    return net


RESNETS = "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d".split()
RESNETS += ["wide_resnet50_2", "wide_resnet101_2"]
VGGS = [f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")]
SCALES = [(246, 224), (281, 256), (422, 384), (528, 480), (704, 640)]  # of an image of 330x300


def our_net(name):
    """Our net of the same name, its weights not initialized."""
    choices = [] if "vgg" in name else ["model.shortcut=B", "model.stride_in_1x1=false"]
    with torch.device("meta"):
        return instantiate(compose_run(f"model={name}", *choices).model, _convert_="all")


@torch.no_grad()
def check_scores(name, sizes):
    """Compare our scores with torchvision's on the center crop, a corner and views of `sizes`."""
    theirs, ours = randomized(name), our_net(name).to_empty(device="cpu").eval()
    load_weights(ours, theirs.state_dict())
    image = resize(torch.randint(0, 256, (3, 6, 5), dtype=torch.uint8), 330, 300)
    complete = [pair[:1] for pair in multi_scale(image)]
    assert [tuple(view.shape[2:]) for view in complete] == SCALES
    views = [center_crop(image)[0], ten_crops(image)[0][:1]]
    views += [view for view in complete if tuple(view.shape[2:]) in sizes]

    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    net = NormalizedNet(ours, 255 * mean, 255 * std)
    seen = []
    for view in views:
        images = (view / 255 - mean[:, None, None]) / std[:, None, None]
        larger = "vgg" in name and view.shape[2:] != (224, 224)
        expected = score_by_convolutions(theirs, images) if larger else theirs(images)
        spread = expected.std().item()
        scores = net(view.permute(0, 2, 3, 1))
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5 * spread)
        # The scores depend on the view, and their size is not degenerate.
        assert 0.1 < spread < 1000
        assert all((expected - other).std() > 0.01 * spread for other in seen)
        seen.append(expected)


@pytest.mark.parametrize("name", RESNETS + VGGS)
def test_names_and_shapes_of_weights_are_torchvisions(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    ours = our_net(name).state_dict()
    assert [*ours] == [*theirs]
    assert all(ours[key].shape == theirs[key].shape for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn"])
def test_torchvisions_weights_give_torchvisions_scores(name):
    """One net of each kind; (281, 256) is the smallest size at which VGG is applied densely."""
    check_scores(name, [(281, 256)])


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS + VGGS)
def test_torchvisions_weights_give_torchvisions_scores_at_all_scales(name):
    check_scores(name, SCALES)


def test_weights_without_num_batches_tracked_are_loaded(net):
    state = {
        key: value for key, value in net.state_dict().items() if "num_batches_tracked" not in key
    }
    load_weights(net, state)


@pytest.mark.fault_injection("bad input", "weights of another net, or a file that is none")
def test_weights_of_another_net_name_the_first_keys_that_differ(net, record_property):
    record_property("tried", 2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    other = resnet(2, "A", 10, "he_fan_in").state_dict()
    message = (
        r"another net: \d+ keys differ, first .*downsample.0.weight: missing in the weights, \(32"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(net, other)
    wider = {**before, "fc.weight": torch.zeros(100, 64)}
    message = r"1 keys differ, first fc.weight: \(100, 64\) in the weights, \(10, 64\) in the net"
    with pytest.raises(ValueError, match=message):
        load_weights(net, wider)
    assert has_weights(net, before)


class Malice:
    """Unpickling this would create a file."""

    def __reduce__(self):
        return (open, ("harm", "w"))


def test_a_malicious_file_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Malice()}, "weights.pt")
    with pytest.raises(ValueError, match="damaged or contains more than tensors"):
        read_weights(tmp_path / "weights.pt", nn.Linear(1, 1))
    assert not (tmp_path / "harm").exists()


@pytest.mark.fault_injection("bad input", "weights of another net, or a file that is none")
def test_files_without_weights_are_refused(tmp_path, record_property):
    record_property("tried", 5)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_weights(tmp_path / "none.pt", nn.Linear(1, 1))
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    damaged = "damaged or contains more than tensors"
    matches = {"text": damaged, "empty": damaged, "tensor": "state dict", "epoch": "state dict"}
    for name, match in matches.items():
        with pytest.raises(ValueError, match=match):
            read_weights(tmp_path / f"{name}.pt", nn.Linear(1, 1))


def test_the_hash_of_weights_depends_on_their_values_not_on_their_memory(net):
    before = hash_weights(net)
    assert hash_weights(net.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        net.fc.bias[0] += 1e-6
    changed = hash_weights(net)
    assert changed != before
    net.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))  # as a net of a user may have
    assert hash_weights(net) not in (before, changed)


def test_an_exported_safetensors_file_is_read_unchanged(net, tmp_path):
    net.to(memory_format=torch.channels_last)
    write_safetensors(
        tmp_path / "net.safetensors", net, None, {"net": "resnet", "mean": [1.0, 2.0, 3.0]}
    )
    torch.manual_seed(1)
    other = resnet(1, "B", 10, "he_fan_in")
    load_weights(other, read_weights(tmp_path / "net.safetensors", other))
    assert has_weights(other, net.state_dict())


@pytest.mark.parametrize("content", [b"", b"hello, this file holds no tensors", b"\xff" * 100])
def test_a_damaged_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net.safetensors is damaged .* saved by safetensors"):
        read_weights(path, net)


def test_a_missing_safetensors_package_is_reported_with_the_command_to_install_it(
    tmp_path, monkeypatch
):
    (tmp_path / "net.safetensors").write_bytes(b"")
    monkeypatch.setattr("src.models.weights.find_spec", lambda name: None)
    message = ".safetensors files need safetensors: uv pip install .*--group export"
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "net.safetensors", nn.Linear(1, 1))


@torch.no_grad()
def test_biases_of_convolutions_are_folded_into_batch_norm():
    theirs = randomized("resnet18")
    theirs.conv1 = biased(theirs.conv1)
    theirs.layer2[0].downsample[0] = biased(theirs.layer2[0].downsample[0])
    state = theirs.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    ours = our_net("resnet18").to_empty(device="cpu").eval()
    load_weights(ours, state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
    # The state dict that was given is left as it was.
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)

    # A bias of another length, and one of a convolution that the net does not have.
    unknown = {"conv1.bias": torch.zeros(3), "layer1.0.conv3.bias": torch.zeros(64)}
    for key, bias in unknown.items():
        with pytest.raises(ValueError, match=f"1 keys differ, first {key}"):
            load_weights(ours, {**ours.state_dict(), key: bias})


def biased(conv):
    with torch.no_grad():
        other = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
        )
        other.weight.copy_(conv.weight)
        nn.init.normal_(other.bias)
    return other


def authors_scores(state, x):
    """The scores [N, 1000] of the released ResNet-50, as its prototxt defines it.

    `x` is [N, 3, H, W] in BGR order, with the mean subtracted.
    """

    def layer(x, conv, norm, stride=1, padding=0):
        x = F.conv2d(x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), stride, padding)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
        return x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    x = layer(x, "conv1", "bn1", 2, 3).relu()
    # Caffe's pooling windows start at the first pixel; the last one may reach over the edge.
    right, bottom = (x.shape[3] + 1) % 2, (x.shape[2] + 1) % 2
    x = F.max_pool2d(F.pad(x, (0, right, 0, bottom), value=-torch.inf), 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = layer(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = layer(y, f"{name}.conv2", f"{name}.bn2", 1, 1).relu()
            y = layer(y, f"{name}.conv3", f"{name}.bn3")
            x = (
                layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if i == 0 else x
            ) + y
            x = x.relu()
    return F.linear(x.flatten(2).mean(2), state["fc.weight"], state["fc.bias"])


@torch.no_grad()
def test_the_config_of_the_authors_released_net_gives_its_scores(tmp_path):
    """By the command in conf/model/resnet50.yaml: pooling, stride, bias, channel order and mean."""
    root = make_folders(tmp_path / "images", train=1, val=1)
    state = randomized("resnet50").state_dict() | {"conv1.bias": torch.randn(64)}
    torch.save(state, tmp_path / "resnet50.pt")
    mean = np.random.default_rng(0).uniform(90, 130, (224, 224, 3)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)

    lines = (CONF / "model" / "resnet50.yaml").read_text().splitlines()
    comments = " ".join(line for line in lines if line.startswith("#"))
    command = re.findall(r"[\w.]+=[\w.]+", comments)
    assert len(command) == 6
    values = {"data.mean": tmp_path / "mean.npy", "weights": tmp_path / "resnet50.pt"}
    command = [f"{key}={values.get(key, value)}" for key, value in (s.split("=") for s in command)]
    config = compose("evaluate", [*command, f"data.root={root}", "data.num_workers=0"])
    net = instantiate(config.model, _convert_="all").eval()
    load_weights(net, read_weights(Path(config.weights), net))
    data = instantiate(config.data, seed=0, _convert_="all")
    data.prepare_data()
    data.setup()
    normalized_net = NormalizedNet(net, data.mean, data.std, data.bgr)

    image = decode_image(np.fromfile(sorted(root.glob("val/*/*"))[-1], np.uint8))
    for view, own_mean in (
        (transforms.center_crop(image), mean),
        (image[:, :300, :271], mean.mean((0, 1))),
    ):
        pixels = view[None].permute(0, 2, 3, 1)
        bgr = torch.from_numpy(pixels.numpy()[..., ::-1] - own_mean).permute(0, 3, 1, 2)
        expected = authors_scores(state, bgr)
        tolerance = 1e-5 * expected.std().item()
        torch.testing.assert_close(normalized_net(pixels), expected, rtol=1e-5, atol=tolerance)
        if own_mean is mean:  # training has no views of other sizes
            images, _ = data.on_after_batch_transfer((pixels, None), 0)
            assert torch.equal(net(images), normalized_net(pixels))
