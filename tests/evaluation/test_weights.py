import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import compose_run
from data.images_on_disk import make_folders
from hydra import compose
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from src.cli import CONF
from src.data.imagenet import MEAN, STD
from src.data.image_reader import decode_image
from src.data.transforms import center_crop, resize
from src.evaluation.protocols import PROTOCOLS, Normalized
from src.evaluation.weights import load_weights, read_weights
from src.export import write_safetensors
from src.models.resnet import resnet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return resnet(1, "B", 10, "fan_in")


def same(net, state):
    own = net.state_dict()
    return list(own) == list(state) and all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 92.1},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"state_dict": {f"net.{key}": value for key, value in state.items()}},
    ],
)
def test_state_dicts_are_found_however_they_are_wrapped(net, tmp_path, wrap):
    torch.save(wrap(net.state_dict()), tmp_path / "weights.pt")
    torch.manual_seed(1)
    other = resnet(1, "B", 10, "fan_in")
    assert not same(other, net.state_dict())
    load_weights(other, read_weights(tmp_path / "weights.pt"))
    assert same(other, net.state_dict())


TORCHVISIONS = "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d".split()
TORCHVISIONS += "wide_resnet50_2 wide_resnet101_2".split()
TORCHVISIONS += [f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")]


def drawn(name):
    """One of torchvision's nets with all weights and statistics at random."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    net = net.to_empty(device="cpu").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, *((0.5, 1.5) if "vgg" in name else (1, 3)))  # branches add up
            nn.init.normal_(module.running_mean, std=0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.1)
    return net


def densely(net, images):
    """The scores of a torchvision VGG net with its fc layers turned into convolutions and their map averaged.

    (torchvision itself pools the last map of larger images to 7x7.)
    """
    first, second, third = (net.classifier[i] for i in (0, 3, 6))
    x = net.features(images)
    x = F.relu(F.conv2d(x, first.weight.view(-1, x.shape[1], 7, 7), first.bias))
    x = F.relu(F.conv2d(x, second.weight[:, :, None, None], second.bias))
    return F.conv2d(x, third.weight[:, :, None, None], third.bias).mean((2, 3))


def all_torchvisions():
    """Each net at 224x224; at all sizes one of each kind, the rest if slow tests are asked for."""
    for name in TORCHVISIONS:
        yield name, ("center", "10crop")
        marks = [] if name in ("resnet18", "vgg11_bn") else pytest.mark.slow
        yield pytest.param(name, ("multiscale",), marks=marks)


@pytest.mark.parametrize(("name", "protocols"), all_torchvisions())
@torch.no_grad()
def test_torchvisions_files_give_torchvisions_outputs_at_each_protocols_sizes(name, protocols, tmp_path):
    theirs, path = drawn(name), tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    choices = [] if "vgg" in name else ["model.shortcut=B", "model.stride_in_1x1=false"]
    with torch.device("meta"):
        ours = instantiate(compose_run(f"model={name}", *choices).model, _convert_="all")
    ours = ours.to_empty(device="cpu").eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    load_weights(ours, read_weights(path))
    path.unlink()

    photo = resize(torch.randint(0, 256, (3, 6, 5), dtype=torch.uint8), 330, 300)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    views = [view[:1] for protocol in protocols for view in PROTOCOLS[protocol].views(photo)]
    whole = [(246, 224), (281, 256), (422, 384), (528, 480), (704, 640)]
    assert [tuple(view.shape[2:]) for view in views] == (whole if protocols == ("multiscale",) else [(224, 224)] * 2)
    scores = []
    for view in views:
        images = (view / 255 - mean[:, None, None]) / std[:, None, None]
        dense = "vgg" in name and view.shape[2:] != (224, 224)
        expected = densely(theirs, images) if dense else theirs(images)
        found = Normalized(ours, 255 * mean, 255 * std)(view.permute(0, 2, 3, 1))
        deviation = expected.std().item()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * deviation)
        assert 0.1 < deviation < 1000
        assert all((expected - other).std() > 0.01 * deviation for other in scores)  # they are of what is seen
        scores.append(expected)


def test_old_weights_that_do_not_count_batches_are_taken(net):
    state = {key: value for key, value in net.state_dict().items() if "num_batches_tracked" not in key}
    load_weights(net, state)


@pytest.mark.fault_injection("bad input", "weights of another net, or a file that is none")
def test_weights_of_another_net_name_the_first_keys_that_differ(net, record_property):
    record_property("tried", 2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    other = resnet(2, "A", 10, "fan_in").state_dict()
    with pytest.raises(
        ValueError, match=r"another net: \d+ keys differ, first .*downsample.0.weight: none given, \(32"
    ):
        load_weights(net, other)
    wider = {**before, "fc.weight": torch.zeros(100, 64)}
    with pytest.raises(ValueError, match=r"1 keys differ, first fc.weight: \(100, 64\) given, \(10, 64\) in the net"):
        load_weights(net, wider)
    assert same(net, before)


class Malice:
    """Unpickling this would make a file."""

    def __reduce__(self):
        return (open, ("harm", "w"))


def test_a_malicious_file_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Malice()}, "weights.pt")
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        read_weights(tmp_path / "weights.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.fault_injection("bad input", "weights of another net, or a file that is none")
def test_files_that_are_no_weights(tmp_path, record_property):
    record_property("tried", 5)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    for name, match in [("text", "tensors alone"), ("empty", "tensors alone"), ("tensor", "dict"), ("epoch", "dict")]:
        with pytest.raises(ValueError, match=match):
            read_weights(tmp_path / f"{name}.pt")


def test_an_exported_safetensors_file_loads_as_it_was(net, tmp_path):
    net.to(memory_format=torch.channels_last)
    write_safetensors(tmp_path / "net.safetensors", net, None, {"net": "resnet", "mean": [1.0, 2.0, 3.0]})
    torch.manual_seed(1)
    other = resnet(1, "B", 10, "fan_in")
    load_weights(other, read_weights(tmp_path / "net.safetensors"))
    assert same(other, net.state_dict())


@pytest.mark.parametrize("content", [b"", b"hello, this is no file of tensors", b"\xff" * 100])
def test_garbage_by_the_name_of_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="net.safetensors is not a file of tensors alone, as safetensors makes one"):
        read_weights(path)


def test_without_the_package_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "net.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="needs safetensors, which uv pip install .*--group export brings"):
        read_weights(tmp_path / "net.safetensors")


def test_biases_that_batch_norm_takes_away_are_taken_in(net):
    theirs = drawn("resnet18")
    theirs.conv1 = biased(theirs.conv1)
    theirs.layer2[0].downsample[0] = biased(theirs.layer2[0].downsample[0])
    state = theirs.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    ours = instantiate(compose_run("model=resnet18", "model.shortcut=B").model, _convert_="all").eval()
    load_weights(ours, state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
    assert state.keys() == kept.keys() and all(torch.equal(state[key], kept[key]) for key in kept)
    for more, of_another in (("conv1.bias", torch.zeros(3)), ("layer1.0.conv3.bias", torch.zeros(64))):
        with pytest.raises(ValueError, match=f"1 keys differ, first {more}"):
            load_weights(ours, {**ours.state_dict(), more: of_another})


def biased(conv):
    with torch.no_grad():
        other = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        other.weight.copy_(conv.weight)
        nn.init.normal_(other.bias)
    return other


def authors_net(state, x):
    """The released ResNet-50 (its prototxt) on [N, 3, H, W] of B, G, R less the mean: scores [N, 1000]."""

    def layer(x, conv, norm, stride=1, padding=0):
        x = F.conv2d(x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), stride, padding)
        scale, shift, mean, var = (state[f"{norm}.{of}"] for of in ("weight", "bias", "running_mean", "running_var"))
        x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
        return x * scale[:, None, None] + shift[:, None, None]

    x = layer(x, "conv1", "bn1", 2, 3).relu()
    # Windows from the first pixel on; the last, where it reaches over the edge, sees minus infinity there.
    x = F.max_pool2d(F.pad(x, (0, (x.shape[3] + 1) % 2, 0, (x.shape[2] + 1) % 2), value=-torch.inf), 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = layer(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = layer(y, f"{name}.conv2", f"{name}.bn2", 1, 1).relu()
            y = layer(y, f"{name}.conv3", f"{name}.bn3")
            x = (layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if i == 0 else x) + y
            x = x.relu()
    return F.linear(x.flatten(2).mean(2), state["fc.weight"], state["fc.bias"])


@torch.no_grad()
def test_the_authors_released_net_is_described_by_config(tmp_path):
    """By the command of conf/model/resnet50.yaml, up to the scores: pooling, stride, a bias, order and mean."""
    root, path = make_folders(tmp_path / "photos", train=1, val=1), tmp_path / "mean.npy"
    state = drawn("resnet50").state_dict() | {"conv1.bias": torch.randn(64)}
    torch.save(state, tmp_path / "resnet50.pt")
    mean = np.random.default_rng(0).uniform(90, 130, (224, 224, 3)).astype(np.float32)
    np.save(path, mean)
    text = (CONF / "model" / "resnet50.yaml").read_text()
    command = re.findall(r"[\w.]+=[\w.]+", " ".join(line for line in text.splitlines() if line.startswith("#")))
    assert len(command) == 6
    values = {"data.mean": path, "weights": tmp_path / "resnet50.pt"}
    command = [f"{key}={values.get(key, value)}" for key, value in (part.split("=") for part in command)]
    config = compose("evaluate", [*command, f"data.root={root}", "data.num_workers=0"])
    net = instantiate(config.model, _convert_="all").eval()
    load_weights(net, read_weights(Path(config.weights)))
    data = instantiate(config.data, seed=0, _convert_="all")
    data.prepare_data()
    data.setup()

    photos = torch.stack([decode_image(np.fromfile(file, np.uint8)) for file in sorted(root.glob("val/*/*"))[-1:]])
    for photo, crop in ((center_crop(photos[0]), True), (photos[0, :, :300, :271], False)):
        pixels = photo[None].permute(0, 2, 3, 1)
        less = mean if crop else mean.mean((0, 1))
        expected = authors_net(state, torch.from_numpy(pixels.numpy()[..., ::-1] - less).permute(0, 3, 1, 2))
        found = Normalized(net, data.mean, data.std, data.bgr)(pixels)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.std().item())
        images, _ = data.on_after_batch_transfer((pixels, None), 0) if crop else (None, None)
        assert not crop or torch.equal(net(images), found)
