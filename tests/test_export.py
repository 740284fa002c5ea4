"""What is exported gives the same outputs wherever it is loaded."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from conftest import ROOT
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from src.export import channels_first, export
from src.models.resnet import resnet


def shaken(net):
    """Batch norm as no net starts with, where a mistake would show."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return net.eval()


@pytest.fixture
def make_run(find):
    """A finished run folder as src.train leaves it, but for its weights, which are random; and its net."""

    def make(*overrides):
        folder = find(*overrides)
        folder.plan()
        torch.manual_seed(0)
        net = shaken(instantiate(folder.config["model"], _convert_="all")).to(memory_format=torch.channels_last)
        folder.last_checkpoint.parent.mkdir()
        state = {f"net.{name}": value for name, value in net.state_dict().items()}
        torch.save({"state_dict": state, "global_step": 8}, folder.last_checkpoint)
        folder.finish({"iterations": 8})
        return folder, net

    return make


def mean_of_digits():
    data = instantiate({"_target_": "src.data.digits.Digits", "test_images": 500, "val_images": 0, "padding": 1}
                       | {"normalization": "pixel", "flip": False, "seed": 0})  # fmt: skip
    data.setup()
    return data.mean


IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 16


def check_metadata(metadata):
    """That `(images - mean) / std` is what the run's own data give; `metadata` is as written in the file."""
    values = {key: json.loads(value) if value[0] in "[{" else value for key, value in metadata.items()}
    assert (values["net"], values["data"], values["model"]["n"]) == ("resnet", "digits", 1)
    mean = np.asarray(values["mean"], np.float32)
    assert mean.shape == (3, 8, 8) and mean.max() > 1
    assert (mean.transpose(1, 2, 0) == mean_of_digits().numpy()).all()
    assert values["std"] == [1, 1, 1]


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_a_state_dict_loads_by_name_and_has_its_mean_beside_it(make_run, tmp_path, suffix):
    folder, net = make_run("n=1")
    export(folder.path, tmp_path / f"net.{suffix}")
    other = resnet(1, "A", 10, "fan_in").eval()
    other.load_state_dict(torch.load(tmp_path / f"net.{suffix}", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(other(IMAGES), net(IMAGES))
    beside = json.loads((tmp_path / "net.json").read_text())
    check_metadata({key: value if isinstance(value, str) else json.dumps(value) for key, value in beside.items()})


def test_safetensors_hold_the_same_weights_and_the_mean(make_run, tmp_path):
    folder, net = make_run("n=1")
    export(folder.path, tmp_path / "net.safetensors")
    other = resnet(1, "A", 10, "fan_in").eval()
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(other(IMAGES), net(IMAGES))
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        check_metadata(file.metadata())


def test_onnx_gives_the_same_scores_for_any_number_of_images(make_run, tmp_path):
    folder, net = make_run("n=1")
    export(folder.path, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for images in (IMAGES, IMAGES[:1]):
        (scores,) = session.run(["scores"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(scores, net(images).numpy(), rtol=1e-4, atol=1e-5)
    check_metadata(session.get_modelmeta().custom_metadata_map)


def test_the_deviation_of_normalized_channels_goes_along(make_run, tmp_path):
    folder, _ = make_run("n=1", "data.normalization=channel")
    export(folder.path, tmp_path / "net.pt")
    metadata = json.loads((tmp_path / "net.json").read_text())
    data = instantiate(folder.config["data"], seed=0)
    data.setup()
    assert len(metadata["std"]) == 3
    assert (metadata["mean"], metadata["std"]) == (data.mean.tolist(), data.std.tolist())


def test_channels_in_the_order_of_the_authors_nets_are_told(make_run, tmp_path):
    photos, mean = make_folders(tmp_path / "photos"), np.random.default_rng(0).uniform(0, 255, (224, 224, 3))
    np.save(tmp_path / "mean.npy", mean)
    found = []
    for bgr in ("true", "false"):
        where = (f"data.root={photos}", f"data.mean={tmp_path}/mean.npy", f"data.bgr={bgr}")
        folder, _ = make_run("model=resnet", "n=1", "data=imagenet", *where)
        export(folder.path, tmp_path / "net.pt")
        found.append(json.loads((tmp_path / "net.json").read_text()))
    assert [one["channels"] for one in found] == ["BGR", "RGB"]
    for one in found:  # as the file has it, in the order of the net's channels
        np.testing.assert_allclose(np.moveaxis(one["mean"], 0, -1), mean, rtol=1e-6)


def test_a_mean_is_written_for_each_channel_or_for_each_pixel():
    image, channels = (3, 4, 5), torch.tensor([1.0, 2.0, 3.0])
    for values in (channels, channels.repeat(5, 1), channels.repeat(4, 5, 1)):  # of a data set, whichever it likes
        assert channels_first(values, image) == [1, 2, 3]
    pixels = torch.arange(60.0).view(4, 5, 3)
    assert channels_first(pixels, image) == pixels.permute(2, 0, 1).tolist()


def test_torchvisions_resnet18_takes_an_exported_run_by_name(make_run, tmp_path):
    folder, net = make_run("model=resnet18", "model.shortcut=B")
    export(folder.path, tmp_path / "net.pth")
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), net(images), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_says_what_to_do(make_run, tmp_path, monkeypatch):
    folder, _ = make_run("n=1")
    with pytest.raises(ValueError, match=r"net.h5 must end in one of .pt, .pth, .safetensors, .onnx"):
        export(folder.path, tmp_path / "net.h5")
    with pytest.raises(FileNotFoundError, match="no run folder with a checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "net.pt")
    monkeypatch.setattr("src.export.find_spec", lambda name: None)
    for suffix, packages in (("safetensors", "safetensors"), ("onnx", "onnx and onnxscript")):
        with pytest.raises(ValueError, match=f"need {packages}, which uv pip install .*--group export brings"):
            export(folder.path, tmp_path / f"net.{suffix}")
    (folder.path / "summary.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        export(folder.path, tmp_path / "net.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_command_writes_the_file_and_answers_a_mistake_in_a_line(make_run, tmp_path):
    folder, _ = make_run("n=1")
    command = [sys.executable, "-m", "src.export", str(folder.path)]
    done = subprocess.run([*command, f"{tmp_path}/net.pt"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"written: {tmp_path}/net.pt\n")
    assert (tmp_path / "net.pt").exists()
    done = subprocess.run([*command, "net"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "net must end in one of .pt, .pth, .safetensors, .onnx\n")
