"""Exported nets give the same outputs wherever they are loaded."""

import hashlib
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
import yaml
from command_line import call_here
from conftest import ROOT, compose_run
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from random_run import random_run
from safetensors import safe_open
from safetensors.torch import load_file

from src import export as command
from src.config import find_run_dir
from src.evaluation import model_card
from src.export import channels_first, export
from src.models.resnet import resnet
from src.models.weights import read_metadata
from src.runs.run_dir import RunDir

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 16


@pytest.fixture
def finished_run(find):
    """Make a run directory with random weights; return its path and its net."""

    def make(*overrides):
        run_dir = find(*overrides)
        return run_dir.path, random_run(run_dir)

    return make


def check_metadata(metadata):
    """Check that the metadata give the net's name and the mean image of the digits."""
    values = {k: json.loads(v) if v[0] in "[{" else v for k, v in metadata.items()}
    assert (values["net"], values["data"], values["model"]["n"]) == ("resnet", "digits", 1)
    mean = np.asarray(values["mean"], np.float32)
    assert mean.shape == (3, 8, 8)
    assert mean.max() > 1
    data = instantiate(compose_run().data, seed=0)
    data.setup()
    assert (mean.transpose(1, 2, 0) == data.mean.numpy()).all()
    assert values["std"] == [1, 1, 1]


@torch.no_grad()
def check_weights(state, net):
    other = resnet(1, "A", 10, "he_fan_in").eval()
    other.load_state_dict(state)
    torch.testing.assert_close(other(IMAGES), net(IMAGES))


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_a_state_dict_has_its_metadata_in_a_json_file_next_to_it(finished_run, tmp_path, suffix):
    run, net = finished_run("n=1")
    export(run, tmp_path / f"net.{suffix}")
    check_weights(torch.load(tmp_path / f"net.{suffix}", weights_only=True), net)
    metadata = json.loads((tmp_path / "net.json").read_text())
    check_metadata({k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})


def test_a_safetensors_file_has_weights_and_metadata(finished_run, tmp_path):
    run, net = finished_run("n=1")
    export(run, tmp_path / "net.safetensors")
    check_weights(load_file(tmp_path / "net.safetensors"), net)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        check_metadata(file.metadata())


def test_a_page_next_to_the_file_says_where_it_comes_from(finished_run, tmp_path):
    run, _ = finished_run("n=4", "seed=3", "recipe.schedule.lr=0.2", "trainer.precision=32-true")
    export(run, tmp_path / "net.safetensors")
    page = (tmp_path / "net.md").read_text()
    command = "python -m src.train model=resnet data=digits seed=3 n=4 "
    command += "trainer.precision=32-true recipe.schedule.lr=0.2"
    assert f"`{command}`" in page
    digest = hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    assert digest in page
    summary = RunDir.open(run).summary
    assert f"| test error | {summary['test_error']:.2f}%" in page
    assert find_run_dir(compose_run(*command.split()[3:])).key == RunDir.open(run).key


@pytest.mark.slow
def test_an_onnx_graph_gives_the_same_scores_for_any_number_of_images(finished_run, tmp_path):
    run, net = finished_run("n=1")
    export(run, tmp_path / "net.onnx")
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == {"net.onnx", "net.md"}  # no weights in a file of their own
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    for images in (IMAGES, IMAGES[:1]):
        (scores,) = session.run(["scores"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(scores, net(images).numpy(), rtol=1e-4, atol=1e-5)
    check_metadata(session.get_modelmeta().custom_metadata_map)


def test_the_std_of_normalized_channels_is_exported(finished_run, tmp_path):
    run, _ = finished_run("n=1", "data.normalization=channel")
    export(run, tmp_path / "net.pt")
    metadata = json.loads((tmp_path / "net.json").read_text())
    data = instantiate(compose_run("data.normalization=channel").data, seed=0)
    data.setup()
    assert len(metadata["std"]) == 3
    assert (metadata["mean"], metadata["std"]) == (data.mean.tolist(), data.std.tolist())


def test_channels_and_mean_are_exported_in_the_order_of_the_net(finished_run, tmp_path):
    root = make_folders(tmp_path / "images", train=1, val=1)
    mean = np.random.default_rng(0).uniform(0, 255, (224, 224, 3))
    np.save(tmp_path / "mean.npy", mean)
    for bgr, channels in (("true", "BGR"), ("false", "RGB")):
        data = (f"data.root={root}", f"data.mean={tmp_path}/mean.npy", f"data.bgr={bgr}")
        run, _ = finished_run("model=resnet", "n=1", "data=imagenet", *data)
        export(run, tmp_path / "net.pt")
        metadata = json.loads((tmp_path / "net.json").read_text())
        assert metadata["channels"] == channels
        # The file data.mean is in the order of the net's channels, too.
        np.testing.assert_allclose(np.moveaxis(metadata["mean"], 0, -1), mean, rtol=1e-6)


def test_a_mean_is_written_per_channel_if_it_is_constant_over_pixels():
    shape, channels = (3, 4, 5), torch.tensor([1.0, 2.0, 3.0])
    for values in (channels, channels.repeat(5, 1), channels.repeat(4, 5, 1)):
        assert channels_first(values, shape) == [1, 2, 3]
    pixels = torch.arange(60.0).view(4, 5, 3)
    assert channels_first(pixels, shape) == pixels.permute(2, 0, 1).tolist()


@torch.no_grad()
def test_torchvisions_resnet18_loads_an_exported_run(finished_run, tmp_path):
    run, net = finished_run("model=resnet18", "model.shortcut=B")
    export(run, tmp_path / "net.pth")
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(images), net(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_published_imagenet_net_is_read_by_torchvision_and_timm(finished_run, tmp_path):
    root = make_folders(tmp_path / "images", train=1, val=1)
    data = ("data=imagenet", f"data.root={root}", "data.normalization=channel")
    run, net = finished_run("model=resnet18", "model.shortcut=B", *data)
    out = tmp_path / "published"
    export(run, out)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs = torchvision.models.resnet18(num_classes=1000)
    theirs.load_state_dict(load_file(out / "model.safetensors"))
    timms = timm.create_model(f"local-dir:{out}", pretrained=True)
    for other in (theirs, timms):
        torch.testing.assert_close(other.eval()(images), net(images), rtol=1e-4, atol=1e-4)

    with safe_open(out / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    prepared = timm.data.resolve_model_data_config(timms)
    for key in ("mean", "std"):
        np.testing.assert_allclose(np.asarray(prepared[key]) * 255, json.loads(metadata[key]))
    page = (out / "README.md").read_text()
    assert page.startswith("---\nlicense: mit\nlibrary_name: timm\n")
    assert "torchvision.models.resnet18(num_classes=1000)" in page
    assert str(tmp_path) not in page + (out / "config.yaml").read_text()


def test_a_published_net_that_only_this_project_has(finished_run, tmp_path, capsys):
    run, _ = finished_run("n=1")
    out = tmp_path / "published"
    export(run, out)
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.yaml", "model.safetensors")
    }
    page = (out / "README.md").read_text()
    assert "library_name: pytorch\n" in page
    assert f"| command | `{model_card.command(RunDir.open(run))}` |" in page
    error = json.loads((run / "summary.json").read_text())["test_error"]
    assert f"| test error | {error:.2f}%" in page
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["recipe"] == RunDir.open(run).config["recipe"]
    assert not {"output_dir", "root"} & {*config, *config["data"]}

    (usage,) = re.findall(r"python -m (src.evaluate) weights=model.safetensors", page)
    result = call_here(capsys, f"weights={out}/model.safetensors", module=usage)
    assert "resnet on digits, center: top-1 error" in result.stdout
    with pytest.raises(ValueError, match="published exists already"):
        export(run, out)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("model=resnet34", "model.shortcut=B"), "resnet34"),
        (("model=resnet34",), None),  # shortcut A
        (("model=resnet50",), None),  # strides in the 1x1 layer
        (("model=resnet50", "model.stride_in_1x1=false"), "resnet50"),
        (("model=resnet50", "model.stride_in_1x1=false", "model.groups=32"), None),
        (("model=plain34",), None),
        (("model=resnet", "n=3"), None),
    ],
)
def test_nets_of_torchvision_and_timm_are_known_by_their_name(find, overrides, name):
    run_dir = find(*overrides)
    metadata = {"model": run_dir.config["model"], "channels": "RGB"}
    assert model_card.name_elsewhere(metadata, run_dir) == name
    assert model_card.name_elsewhere(metadata | {"channels": "BGR"}, run_dir) is None


def test_the_mean_of_a_mean_image_is_that_of_each_channel():
    mean = [[[0.0, 255.0], [255.0, 0.0]], [[51.0] * 2] * 2, [[102.0] * 2] * 2]
    settings = model_card.timm_config("resnet18", 10, {"mean": mean, "std": [1.0] * 3})
    assert settings["pretrained_cfg"]["mean"] == [0.5, 0.2, 0.4]


def test_a_publication_that_fails_leaves_no_directory(finished_run, tmp_path, monkeypatch):
    run, _ = finished_run("n=1")
    monkeypatch.setattr("src.export.published_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()
    monkeypatch.undo()
    export(run, tmp_path / "published")
    assert {path.name for path in tmp_path.iterdir()} == {"published", "runs"}


def test_errors_say_what_to_do(finished_run, tmp_path, monkeypatch):
    run, _ = finished_run("n=1")
    with pytest.raises(ValueError, match=r"net.h5 must end in one of .pt, .pth, .safetensors, "):
        export(run, tmp_path / "net.h5")
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        export(tmp_path / "nowhere", tmp_path / "net.pt")
    (run / "summary.json").rename(tmp_path / "summary.json")
    with pytest.raises(ValueError, match="is not finished: rerun the command"):
        export(run, tmp_path / "net.pt")
    (tmp_path / "summary.json").rename(run / "summary.json")
    monkeypatch.setattr("src.models.weights.find_spec", lambda name: None)
    for suffix, packages in (("safetensors", "safetensors"), ("onnx", "onnx and onnxscript")):
        with pytest.raises(ValueError, match=f"need {packages}: uv pip install .*--group export"):
            export(run, tmp_path / f"net.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_command_writes_the_file(finished_run, tmp_path, monkeypatch, capsys):
    run, _ = finished_run("n=1")
    monkeypatch.setattr(sys, "argv", ["src.export", str(run), f"{tmp_path}/net.pt"])
    command.main()
    assert capsys.readouterr().out == f"written: {tmp_path}/net.pt\n"
    assert (tmp_path / "net.pt").exists()


def test_the_command_reports_an_error_as_one_line():
    call = [sys.executable, "-m", "src.export", "nowhere", "net.h5"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    message = "net.h5 must end in one of .pt, .pth, .safetensors, .onnx, or be a directory\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize(
    "overrides",
    [
        ["n=9", "seed=3"],
        ["data=imagenet", "model=resnet50", "recipe=imagenet_plateau"],
        ["data=imagenet", "model=vgg16", "recipe=vgg", "recipe.schedule.patience=9"],
        ["recipe.schedule.milestones=[0.3333333,0.6666667]", "recipe.schedule.warmup_from_n=null"],
        ["recipe=cifar10", "recipe.decay_norm_and_bias=false"],
    ],
)
def test_the_command_on_a_card_is_that_of_the_run(find, overrides):
    run_dir = find("trainer.precision=32-true", *overrides)
    program, *arguments = shlex.split(model_card.command(run_dir))[2:]
    assert program == "src.train"
    assert find(*arguments).key == run_dir.key


def test_an_exported_state_dict_has_its_normalization_next_to_it(finished_run, tmp_path):
    run, _ = finished_run("n=1")
    export(run, tmp_path / "net.pt")
    metadata = read_metadata(tmp_path / "net.pt")
    assert metadata == json.loads((tmp_path / "net.json").read_text())
    assert {"model", "data", "mean", "std", "channels"} <= metadata.keys()
    for text in ('["of something else"]', "no JSON"):
        (tmp_path / "net.json").write_text(text)
        assert read_metadata(tmp_path / "net.pt") == {}
