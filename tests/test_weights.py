import sys

import pytest
import torch
import torchvision

from src.export import write_safetensors
from src.models.residual import resnet, resnet_imagenet
from src.weights import load_weights, read_weights


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


def test_torchvisions_file_gives_torchvisions_outputs(tmp_path):
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = resnet_imagenet(18, "B", False, 1, 64, [False] * 4, False, 1000, "fan_out").eval()
    load_weights(ours, read_weights(tmp_path / "resnet18.pth"))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_old_weights_that_do_not_count_batches_are_taken(net):
    state = {key: value for key, value in net.state_dict().items() if "num_batches_tracked" not in key}
    load_weights(net, state)


def test_weights_of_another_net_name_the_first_keys_that_differ(net):
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


def test_files_that_are_no_weights(tmp_path):
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
