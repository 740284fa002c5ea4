import os
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import TINY, compose_run
from data.images_on_disk import make_folders
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_cli import call
from test_protocols import reader, reference
from torch import nn

from src import train
from src.cli import CONF
from src.evaluate import evaluate, run_config
from src.evaluation.protocols import Bar
from src.evaluation.weights import load_weights, read_weights

CPU = {"accelerator": "cpu", "precision": "32-true"}


def counts(test):
    return test["mistakes"], test["mistakes_top5"], test["images"]


def test_a_run_is_tested_as_it_was_when_it_ended(tiny, capsys):
    folder = tiny("data.val_images=100")
    config = folder.config | {"weights": folder.last_checkpoint}
    test = evaluate([config | {"name": "it"}], CPU | {"precision": None}, "center", "it")
    mistakes, mistakes_top5, images = counts(test)
    assert images == 500
    assert 100 * mistakes / images == test["test_error"] == folder.summary["test_error"]
    assert 100 * mistakes_top5 / images == test["test_error_top5"] == folder.summary["test_error_top5"]
    assert f"({mistakes} and {mistakes_top5} of 500 test images)" in capsys.readouterr().out


@pytest.mark.parametrize("test_images", [499, 501, 7])
def test_every_test_image_counts_once_in_batches_of_any_size(tiny, monkeypatch, test_images):
    """Against a plain loop over single images."""
    folder = tiny()
    config = OmegaConf.to_container(compose_run(*TINY, f"data.test_images={test_images}"), resolve=True)
    config |= {"weights": folder.last_checkpoint}
    monkeypatch.setattr("src.data.in_memory.TEST_BATCH", 64)
    mistakes, mistakes_top5, images = counts(evaluate([config], CPU, "center", "it"))
    assert images == test_images
    data = instantiate(config["data"], seed=0)
    data.setup()
    net = instantiate(config["model"])
    load_weights(net, read_weights(folder.last_checkpoint))
    net.eval()
    ranks = []
    with torch.no_grad():
        for image, label in zip(*data.splits["test"], strict=True):
            scores = net((image.float() - data.mean).permute(2, 0, 1)[None])[0]
            ranks.append(int((scores > scores[label]).sum()))
    assert mistakes == sum(rank >= 1 for rank in ranks)
    assert mistakes_top5 == sum(rank >= 5 for rank in ranks)


def ranks(scores, labels):
    return [int((of > of[label]).sum()) for of, label in zip(scores, labels, strict=True)]


def test_an_ensemble_of_runs_averages_their_softmax_scores_each_with_its_own_mean(tiny, capsys):
    folders = [tiny(f"seed={seed}", "data.val_images=1000") for seed in (0, 1)]
    shares = []
    for folder in folders:
        data = instantiate(folder.config["data"], seed=folder.config["seed"])
        data.setup()
        net = instantiate(folder.config["model"])
        load_weights(net, read_weights(folder.last_checkpoint))
        net.eval()
        images, labels = data.splits["test"]
        with torch.no_grad():
            shares.append([net((i.float() - data.mean).permute(2, 0, 1)[None])[0].softmax(0) for i in images])
    alone = [ranks(share, labels) for share in shares]
    together = ranks([(one + other) / 2 for one, other in zip(*shares, strict=True)], labels)
    assert alone[0] != alone[1] != together != alone[0]
    nets = [folder.config | {"weights": folder.last_checkpoint, "name": "it"} for folder in folders]
    expected = sum(rank >= 1 for rank in together), sum(rank >= 5 for rank in together), 500
    assert counts(evaluate(nets, CPU, "center", "both")) == expected
    twice, once = (evaluate(which, CPU, "center", "it") for which in (nets[:1] * 2, nets[:1]))
    assert counts(twice) == counts(once)

    fewer = nets[0] | {"data": nets[0]["data"] | {"test_images": 400}, "name": "that"}
    with pytest.raises(ValueError, match="that is of other data: an ensemble must have one and the same test images"):
        evaluate([*nets, fewer], CPU, "center", "it")


@pytest.mark.parametrize("protocol", ["center", "10crop", "multiscale"])
def test_photos_are_tested_by_each_protocol_and_every_one_counts(tmp_path, protocol, capsys):
    """Against scores worked out photo by photo, and one photo that is skipped."""
    root = make_folders(tmp_path, val=3)
    paths = sorted(root.glob("val/*/*"))
    paths.pop(4).write_bytes(b"text")
    data = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml"))
    data |= {"root": str(root), "normalization": "channel", "num_workers": 1, "on_bad": "skip"}
    nets = []
    for seed in (0, 1):
        weights = tmp_path / f"{seed}.pt"
        torch.save(reader(seed).state_dict(), weights)
        model = {"_target_": "test_protocols.reader", "seed": seed}
        nets.append({"model": model, "data": data, "seed": 0, "weights": weights})
    scores = np.mean([[reference(protocol, path, "channel", seed) for path in paths] for seed in (0, 1)], 0)
    of = ranks(scores, [0, 0, 0, 1, 1, 2, 2, 2])
    expected = sum(rank >= 1 for rank in of), sum(rank >= 5 for rank in of), 8
    assert counts(evaluate(nets, CPU, protocol, "it")) == expected
    told = capsys.readouterr()
    assert "of 8 test images" in told.out and told.err.count("skipped, 1 so far") == 1 == len(told.err.splitlines())


def test_a_run_is_tested_by_the_protocol_it_asks_for_and_later_by_another_without_being_trained_again(
    tmp_path, find, monkeypatch, capsys
):
    photos = ["data=imagenet", f"data.root={make_folders(tmp_path / 'photos')}", "data.num_workers=1"]
    small = ["n=1", "trainer.precision=32-true", "recipe.iterations=2", "recipe.batch_size=4", *photos]
    by = {protocol: find(*small, f"protocol={protocol}") for protocol in ("center", "10crop", "multiscale")}
    first = by["10crop"]
    assert {folder.path for folder in by.values()} == {first.path}
    train.run(first)
    assert [folder.finished for folder in by.values()] == [True, True, False]
    monkeypatch.setattr("src.training.trainer.fit", None)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Bar, "on_test_batch_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train.run(by["multiscale"])
    assert stopped.value.code == 128 + signal.SIGTERM and not by["multiscale"].finished
    assert "stopped by SIGTERM: saved at iteration 2; the same command goes on" in capsys.readouterr().out
    train.run(by["multiscale"])
    assert by["multiscale"].finished
    assert sorted(path.name for path in first.path.glob("*.json")) == ["10crop.json", "multiscale.json", "summary.json"]
    capsys.readouterr()
    for protocol in ("10crop", "multiscale"):
        kept = first.tested(protocol)
        again = evaluate([run_config(first)], CPU, protocol, "it")
        assert counts(kept) == counts(again) and kept["images"] == 6 and kept["protocol"] == protocol
        assert f", by {protocol} {kept['test_error']:.2f}%" in train.in_words(by[protocol])
    # The photos are elsewhere now.
    (tmp_path / "photos").rename(tmp_path / "moved")
    done = call(f"run={first.path}", f"root={tmp_path}/moved", "protocol=10crop", module="src.evaluate")
    assert done.returncode == 0 and f"({first.tested('10crop')['mistakes']} and" in done.stdout, done.stderr
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        evaluate([run_config(first)], CPU, "10crop", "it")


def test_a_protocol_that_cannot_be_is_refused_before_anything_is_trained(find):
    folder = find(*TINY, "protocol=multiscale")
    with pytest.raises(ValueError, match="protocol=multiscale is for photos"):
        train.run(folder)
    assert not folder.path.exists()


class Looking(nn.Module):
    """Keeps what it and others of its kind are given."""

    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        self.seen.append(x)
        return self.scores.expand(len(x), -1)


def test_each_net_of_an_ensemble_gets_its_channels_in_its_own_order(tmp_path, monkeypatch):
    root, weights = make_folders(tmp_path), tmp_path / "weights.pt"
    torch.save(Looking().state_dict(), weights)
    monkeypatch.setattr(Looking, "seen", [])
    data = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "imagenet.yaml"))
    data |= {"root": str(root), "normalization": "channel", "num_workers": 0}
    del data["mean"]  # as runs from before it was a key
    nets = [
        {"model": {"_target_": "test_evaluate.Looking"}, "data": of, "seed": 0, "weights": weights, "name": "it"}
        for of in ({key: value for key, value in data.items() if key != "bgr"}, data | {"bgr": True})
    ]
    evaluate(nets, CPU, "center", "it")
    rgb, bgr = Looking.seen
    assert torch.equal(rgb, bgr.flip(1)) and not torch.allclose(rgb, bgr)


def test_protocols_that_cannot_be_are_refused(tiny):
    folder = tiny()
    config = folder.config | {"weights": folder.last_checkpoint}
    with pytest.raises(ValueError, match="small images are tested as they are, protocol=center"):
        evaluate([config], CPU, "10crop", "it")
    with pytest.raises(ValueError, match="protocol=10crops is not one of center, 10crop, multiscale"):
        evaluate([config], CPU, "10crops", "it")


def test_an_ensemble_and_mistakes_on_the_command_line(tiny):
    paths = [tiny(f"seed={seed}").path for seed in (0, 1)]
    both = call(f"run=[{paths[0]},{paths[1]}]", "trainer.accelerator=cpu", module="src.evaluate")
    first, second = (path.name for path in paths)
    assert both.stdout.startswith(f"ensemble of {first} and {second} on digits, center: top-1 error "), both.stderr
    assert "of 500 test images" in both.stdout and both.stderr == ""
    for arguments, message in {
        (f"run=[{paths[0]},nowhere]",): "nowhere is no run folder with a checkpoint in it",
        (f"run={paths[0]}", "weights=a.pt"): "say either run=FOLDER, or weights=FILE",
    }.items():
        done = call(*arguments, module="src.evaluate")
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
